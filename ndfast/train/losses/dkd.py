"""DKD: KD in two parts, the label's class and the others, each with its own factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ndfast.train.losses.precision import at_least_float32


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Decoupled knowledge distillation, the mean over the rows of

    .. math:: T^2 \, (\alpha \, \mathrm{TCKD} + \beta \, \mathrm{NCKD}), \quad
        \mathrm{TCKD} = \mathrm{KL}(b^t \,\Vert\, b^s), \quad
        \mathrm{NCKD} = \mathrm{KL}(\hat p^t \,\Vert\, \hat p^s)

    with p = softmax(z / T), b = (p_y, 1 - p_y) for the label y, and p̂ = p / (1 - p_y) of the other
    classes. KD is the same with α = 1 and β = 1 - p_y of the teacher, row by row, which is next to
    nothing where the teacher is confident.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.

    Args:
        student_logits: [N, K] of any floating-point dtype, K of at least 2.
        teacher_logits: [N, K]; a constant, no gradient goes to them.
        target: y, int64 [N].
        alpha: α.
        beta: β.
        temperature: T.

    Returns:
        The loss in nats, 0-dim, float32 (float64 for float64 logits).
    """
    is_target = F.one_hot(target, student_logits.shape[1]).bool()
    student = _split(student_logits, is_target, temperature)
    teacher = _split(teacher_logits.detach(), is_target, temperature)
    tckd, nckd = (
        F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
        for of_student, of_teacher in zip(student, teacher, strict=True)
    )
    return temperature**2 * (alpha * tckd + beta * nckd)


def _split(logits: Tensor, is_target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The logarithms of b [N, 2] and of p̂ [N, K], whose entry of the label is 0."""
    logits = at_least_float32(logits) / temperature
    others = logits.masked_fill(is_target, -torch.inf).logsumexp(dim=1, keepdim=True)
    of_target = logits.masked_fill(~is_target, 0.0).sum(dim=1, keepdim=True)
    # Not the logarithm of 1 - p_y: where the teacher is confident, that rounds to 0.
    binary = F.log_softmax(torch.cat([of_target, others], dim=1), dim=1)
    return binary, (logits - others).masked_fill(is_target, 0.0)
