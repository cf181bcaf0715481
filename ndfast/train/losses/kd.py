"""KD: the teacher's probabilities as soft labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ndfast.train.losses.precision import at_least_float32


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Hinton's distillation loss, the mean over the rows of

    .. math:: T^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T) \,\Vert\, \mathrm{softmax}(z_s / T))

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv
    1503.02531.

    Args:
        student_logits: [N, K] of any floating-point dtype.
        teacher_logits: [N, K]; a constant, no gradient goes to them.
        temperature: T.

    Returns:
        The loss in nats, 0-dim, float32 (float64 for float64 logits).
    """
    divergence = F.kl_div(
        F.log_softmax(at_least_float32(student_logits) / temperature, dim=1),
        F.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence
