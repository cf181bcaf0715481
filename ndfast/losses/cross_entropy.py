"""Cross entropy with labels that may be mixed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ndfast.arguments import check_lam
from ndfast.backends.reference import rows_that_count
from ndfast.labels import Mix
from ndfast.losses.rows import IGNORE_INDEX, at_least_float32, check_logits, mean_over_rows


def cross_entropy(logits: Tensor, labels: Tensor | Mix, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy, the mean over the rows; of mixed labels a and b

        lam · CE(z, a) + (1 - lam) · CE(z, b)

    Of labels that are not mixed it is F.cross_entropy, but for a batch of no row, or of ignored
    ones alone: that one is NaN there, and this is 0 with zero gradient, as `ndfast.nd_loss` is. A
    row is ignored, and not in the mean, where its label is -100, of mixed ones either. A label
    whose share is 0 adds nothing, even where its class has a logit of -inf. With one class the loss
    is 0.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412;
    the same for CutMix, arXiv 1905.04899.

    Args:
        logits: z [N, K] of any floating-point dtype.
        labels: int64 or uint8 [N], or probabilities [N, K]; or a Mix of two of the former, ``lam``
            a number or a constant, 0-dim or [N].
        label_smoothing: the share of the label that goes to all classes alike.

    Returns:
        The loss in nats, 0-dim, float32 (float64 for float64 logits).

    Raises:
        TypeError: the logits are no floating-point tensor; ``lam`` is neither that nor a number;
            labels that are mixed are probabilities.
        ValueError: the logits are not [N, K]; ``lam`` is out of range, of a wrong shape, or
            requires a gradient.
        TypeError, ValueError, RuntimeError, IndexError: F.cross_entropy's for labels of a wrong
            type, shape, dtype or range. On a GPU one out of range is CUDA's assertion.
    """
    check_logits("logits", logits)
    logits = at_least_float32(logits)

    def losses_of(target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)

    if not isinstance(labels, Mix):
        losses = losses_of(labels)
        counts = rows_that_count(None if labels.is_floating_point() else labels, None, IGNORE_INDEX)
        return mean_over_rows(losses, counts)
    loss_a, loss_b = losses_of(labels.target_a), losses_of(labels.target_b)
    for name, target in (("target_a", labels.target_a), ("target_b", labels.target_b)):
        if target.is_floating_point():
            raise TypeError(f"labels.{name}: got dtype {target.dtype}; expected class indices")
    check_lam("labels.lam", labels.lam, loss_a.shape, loss_a.device)
    lam = labels.lam
    lam = at_least_float32(lam) if isinstance(lam, Tensor) else loss_a.new_full((), lam)
    losses = lam * loss_a.masked_fill(lam == 0, 0.0) + (1 - lam) * loss_b.masked_fill(lam == 1, 0.0)
    counts = rows_that_count(labels.target_a, labels.target_b, IGNORE_INDEX)
    return mean_over_rows(losses, counts)
