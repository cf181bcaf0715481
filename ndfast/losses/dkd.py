"""DKD: KD in two parts, the label's class and the others, each with its own factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ndfast.backends.reference import rows_that_count
from ndfast.losses.rows import IGNORE_INDEX, kl_divergence, mean_over_rows, softened


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation, the mean over the rows of

        T² · (α TCKD + β NCKD),  TCKD = KL(b_t ‖ b_s),  NCKD = KL(p̂_t ‖ p̂_s)

    with p = softmax(z / T), b = (p_y, 1 - p_y) for the label y, and p̂ = p / (1 - p_y) of the other
    classes. KD is the same with α = 1 and β = 1 - p_y of the teacher, row by row, which is next to
    nothing where the teacher is confident.

    Logits of -inf, +inf and NaN do what they do to `kd_loss`. Where student or teacher has no class
    beside the label's, p̂ is of nothing: the row's NCKD is 0. So with two classes the loss is αT²
    times KD's divergence, and with one class 0. With no row, or none that is not ignored, it is 0
    with zero gradient.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.

    Args:
        student_logits: [N, K] of any floating-point dtype.
        teacher_logits: [N, K]; a constant, no gradient goes to them.
        target: y, int64 or uint8 [N]. A row of -100 is ignored, as F.cross_entropy has it: it is
            not in the mean, and NaN in it does not matter.
        alpha: α.
        beta: β.
        temperature: T, above 0.

    Returns:
        The loss in nats, 0-dim, float32 (float64 if any logits are).

    Raises:
        TypeError: logits are no floating-point tensor; the temperature is no number.
        ValueError: the logits' shapes are not [N, K] and the same; the temperature is out of range.
        TypeError, ValueError, RuntimeError, IndexError: F.cross_entropy's for a ``target`` of a
            wrong type, shape, dtype or range. On a GPU one out of range is CUDA's assertion.
    """
    student, teacher = softened(student_logits, teacher_logits, temperature)
    of_label = [-F.nll_loss(logits, target, reduction="none") for logits in (student, teacher)]
    counts = rows_that_count(target, None, IGNORE_INDEX)
    assert counts is not None
    classes = torch.arange(student.shape[1], device=target.device)
    left_out = (classes == target.long()[:, None]) | ~counts[:, None]
    binary_s, others_s, no_others_s = _split(student, of_label[0], left_out)
    binary_t, others_t, no_others_t = _split(teacher, of_label[1], left_out)
    tckd = kl_divergence(binary_s, binary_t)
    nckd = kl_divergence(others_s, others_t).masked_fill(no_others_s | no_others_t, 0.0)
    return temperature**2 * mean_over_rows(alpha * tckd + beta * nckd, counts)


def _split(logits: Tensor, of_label: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of b [N, 2] and of p̂ [N, K], and whether p̂ is of nothing [N]."""
    others = logits.masked_fill(left_out, -torch.inf)
    no_others = others.isneginf().all(dim=1)
    others = others.masked_fill(no_others[:, None], 0.0)  # a logsumexp of -inf has no gradient
    of_others = others.logsumexp(dim=1).masked_fill(no_others, -torch.inf)
    # Not the logarithm of 1 - p_y: where the teacher is confident, that rounds to 0.
    binary = torch.stack([of_label, of_others], dim=1).log_softmax(dim=1)
    return binary, others.log_softmax(dim=1), no_others
