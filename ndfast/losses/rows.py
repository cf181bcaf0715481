"""What the losses share: their checks, what they compute in, a row's divergence, the mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ndfast.arguments import check_float_tensor, check_number

IGNORE_INDEX = -100  # of labels, as F.cross_entropy has it


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are float64: a loss is not computed in less.

    Autocast leaves log_softmax of bfloat16 logits in bfloat16 on the CPU.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_logits(name: str, logits: Tensor) -> None:
    """Raises TypeError for what is no floating-point tensor, ValueError for one not [N, K]."""
    check_float_tensor(name, logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name}: got shape {list(logits.shape)}; expected [N, K] with K > 0")


def softened(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Both logits divided by T, of one dtype, the teacher's as a constant.

    Raises:
        TypeError: logits are no floating-point tensor; the temperature is no number.
        ValueError: the student's logits are not [N, K], or the teacher's of another shape (none are
            broadcast); the temperature is not finite or not above 0.
    """
    check_logits("student_logits", student_logits)
    check_float_tensor("teacher_logits", teacher_logits)
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits: got shape {list(teacher_logits.shape)}; expected "
            f"{list(student_logits.shape)}, that of student_logits"
        )
    check_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}; expected a finite number above 0")
    dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
    student, teacher = (
        at_least_float32(logits.to(dtype)) / temperature
        for logits in (student_logits, teacher_logits.detach())
    )
    return student, teacher


def kl_divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each row [N], from the logarithms of probabilities [N, K].

    Where the teacher's probability is 0 there is nothing to add, whatever the student's logarithm:
    F.kl_div has 0 · ∞ where that is infinite, and with log_target where the teacher's is.
    """
    teacher = log_teacher.exp()
    terms = teacher * (log_teacher - log_student)
    return terms.masked_fill(teacher == 0, 0.0).sum(dim=1)


def mean_over_rows(losses: Tensor, counts: Tensor | None = None) -> Tensor:
    """The mean of the losses [N] over the rows that count, by default all; 0 where none does."""
    if counts is None:
        return losses.sum() / max(len(losses), 1)
    return losses.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
