"""DIST: correlation of the probabilities in place of their divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from ndfast.losses.rows import softened

_EPS = 1e-8  # the authors'
_NEAR_CONSTANT = 0.02
_TINY = 1e-30  # below it a mean is 0: its reciprocal must be finite in float32


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """DIST, from the probabilities Y = softmax(z / T) [N, K] of student and teacher:

        T² · (β/N · Σ_i d(Y_s[i, :], Y_t[i, :]) + γ/K · Σ_j d(Y_s[:, j], Y_t[:, j]))

    where d is 1 minus Pearson's correlation: along a row it compares how the classes relate, along
    a column how the rows of the batch do. T² is as in KD++'s trainer.

    A row or column that is constant in student or teacher counts as uncorrelated, d = 1. The nearer
    the student's is to that, the faster its correlation turns: of a row the gradient grows as
    1 / ‖z - mean(z)‖, to 10⁶ where a classifier starts at 0 and the row is constant. So the
    correlation is multiplied by a weight. It is 1, and d the authors' value, where the norm r
    of the student's centred probabilities is 0.02 of their mean and more, which is where a row's
    ‖z - mean(z)‖ is 0.02 T and more. Below, with q = (r / (0.02 mean))², it is q (2 - q): smooth,
    and 0 with zero gradient at a constant row, which the cross entropy beside it leaves. The
    gradient's norm is then at most 77 T (β / √N + γ / √K), however close to constant.

    With N = 1 each column is constant: the second part is γT², without a gradient; so it is with
    K = 1 for both, (β + γ) T². With no row the loss is 0 with zero gradient. A logit of -inf is a
    probability of 0; a row of no class, one of +inf and one of NaN make the loss NaN.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv
    2205.10536, section 4.

    Args:
        student_logits: [N, K] of any floating-point dtype.
        teacher_logits: [N, K]; a constant, no gradient goes to them.
        beta: β, of the relation between classes.
        gamma: γ, of the relation within a class.
        temperature: T, above 0.

    Returns:
        The loss, 0-dim, float32 (float64 if any logits are).

    Raises:
        TypeError: logits are no floating-point tensor; the temperature is no number.
        ValueError: the shapes are not [N, K] and the same; the temperature is out of range.
    """
    student, teacher = (
        logits.softmax(dim=1) for logits in softened(student_logits, teacher_logits, temperature)
    )
    if not len(student):
        return student.sum()
    between_classes, within_class = (
        1 - _correlation(student, teacher, dim).mean() for dim in (1, 0)
    )
    return temperature**2 * (beta * between_classes + gamma * within_class)


def _correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of x and y along ``dim``, drawn to 0 where x is nearly constant."""
    mean = x.mean(dim)
    x, y = (values - values.mean(dim, keepdim=True) for values in (x, y))
    norm = torch.linalg.vector_norm(x, dim=dim)
    correlation = (x * y).sum(dim) / (norm * torch.linalg.vector_norm(y, dim=dim) + _EPS)
    q = (norm / (_NEAR_CONSTANT * mean).clamp(min=_TINY)).clamp(max=1).square()
    return correlation * q * (2 - q)
