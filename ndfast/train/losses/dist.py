"""DIST: correlation of the probabilities in place of their divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from ndfast.train.losses.precision import at_least_float32


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""DIST, from the probabilities Y = softmax(z / T) [N, K] of student and teacher:

    .. math:: T^2 \, \Big(\beta \, \frac{1}{N} \sum_{i=1}^{N} d(Y^s_{i,:}, Y^t_{i,:})
        + \gamma \, \frac{1}{K} \sum_{j=1}^{K} d(Y^s_{:,j}, Y^t_{:,j})\Big)

    where d is 1 minus Pearson's correlation: along a row it compares how the classes relate, along
    a column how the rows of the batch do. T² is as in KD++'s trainer.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv
    2205.10536, section 4.

    Args:
        student_logits: [N, K] of any floating-point dtype.
        teacher_logits: [N, K]; a constant, no gradient goes to them.
        beta: β, of the relation between classes.
        gamma: γ, of the relation within a class.
        temperature: T.

    Returns:
        The loss, 0-dim, float32 (float64 for float64 logits). A row or column that is constant in
        student or teacher counts as uncorrelated: with N = 1 the second part is γT², without a
        gradient.
    """
    student, teacher = (
        (at_least_float32(logits) / temperature).softmax(dim=1)
        for logits in (student_logits, teacher_logits.detach())
    )
    between_classes, within_class = (
        1 - _correlation(student, teacher, dim).mean() for dim in (1, 0)
    )
    return temperature**2 * (beta * between_classes + gamma * within_class)


def _correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of x and y along ``dim``, and 0 where one of them is constant."""
    x, y = (values - values.mean(dim, keepdim=True) for values in (x, y))
    norms = torch.linalg.vector_norm(x, dim=dim) * torch.linalg.vector_norm(y, dim=dim)
    return (x * y).sum(dim) / (norms + 1e-8)  # the authors' eps
