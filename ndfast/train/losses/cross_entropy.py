"""Cross entropy with labels that may be mixed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ndfast.labels import Mix
from ndfast.train.losses.precision import at_least_float32


def cross_entropy(logits: Tensor, labels: Tensor | Mix, label_smoothing: float = 0.0) -> Tensor:
    r"""Cross entropy, the mean over the rows; of mixed labels a and b

    .. math:: \lambda \, \mathrm{CE}(z, a) + (1 - \lambda) \, \mathrm{CE}(z, b)

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412;
    the same for CutMix, arXiv 1905.04899.

    Args:
        logits: z [N, K] of any floating-point dtype.
        labels: int64 [N]; or a Mix of two such, ``lam`` a number or [N].
        label_smoothing: the share of the label that goes to all classes alike.

    Returns:
        The loss in nats, 0-dim, float32 (float64 for float64 logits).
    """
    logits = at_least_float32(logits)
    if isinstance(labels, Tensor):
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    loss_a, loss_b = (
        F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
        for target in (labels.target_a, labels.target_b)
    )
    return (labels.lam * loss_a + (1 - labels.lam) * loss_b).mean()
