"""The loss in plain PyTorch: the definition, for any device.

KD++, "Improving Knowledge Distillation via Regularizing Feature Direction and Norm" (ECCV 2024,
arXiv 2305.17007), equation of the ND loss. Tests, benchmarks and the training harness compare with
this file; a new option starts here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndfast.private import add_by_sorted_labels

NONE, MEAN, SUM = range(3)

is_unscaled = True  # the rows are counted first

# Rows whose label is no class, which may be most of a batch, are spread over this many that nobody
# reads: on a GPU those of one label are added one after the other.
_ROWS_OF_NO_CLASS = 64


def unusable(device: torch.device) -> str | None:
    """Plain PyTorch runs everywhere."""
    return None


class RowTerms(NamedTuple):
    """What a row's loss and gradients are made of, each [N]."""

    student_norm: Tensor
    teacher_norm: Tensor
    centre_norm: Tensor  # not yet clamped to eps
    larger_norm: Tensor  # m = max(n_s, n_t, eps)
    projection: Tensor  # p = <s, c> / max(‖c‖, eps)


def row_terms(student: Tensor, teacher: Tensor | None, centres: Tensor, eps: float) -> RowTerms:
    """Norms, m and p of each row; differentiable by autograd.

    Args:
        student: [N, D].
        teacher: [N, D] features, [N] norms, or None for m = max(n_s, eps).
        centres: [N, D], the class mean of each row's label.
        eps: lower bound of the norms that are divided by.
    """
    student_norm = torch.linalg.vector_norm(student, dim=1)
    if teacher is None:
        teacher_norm = torch.zeros_like(student_norm)
    elif teacher.dim() == 1:
        teacher_norm = teacher
    else:
        teacher_norm = torch.linalg.vector_norm(teacher, dim=1)
    # A tie belongs to the student, and a NaN teacher is not hidden; torch.maximum splits the tie.
    teacher_is_larger = (teacher_norm > student_norm) | teacher_norm.isnan()
    larger_norm = torch.where(teacher_is_larger, teacher_norm, student_norm).clamp_min(eps)
    centre_norm = torch.linalg.vector_norm(centres, dim=1)
    projection = (student * centres).sum(dim=1) / centre_norm.clamp_min(eps)
    return RowTerms(student_norm, teacher_norm, centre_norm, larger_norm, projection)


def row_loss(student: Tensor, teacher: Tensor | None, centres: Tensor, eps: float = 1e-8) -> Tensor:
    """The ND loss of each row [N], 1 - p / m; differentiable. Shapes as for `row_terms`."""
    terms = row_terms(student, teacher, centres, eps)
    return 1 - terms.projection / terms.larger_norm


def row_coefficients(terms: RowTerms, eps: float) -> Tensor:
    """The coefficients of a row's gradients, [4, N]: alpha, beta, gamma, delta.

    ∂s = alpha·c + beta·s,  ∂t = gamma·t,  ∂c = alpha·s + delta·c. The comparisons are written so
    that a NaN norm makes them true and the NaN goes on.
    """
    n_s, n_t, centre_norm, m, p = terms
    n_c = centre_norm.clamp_min(eps)
    zero = torch.zeros_like(p)
    shrink = p / m / m
    # NaN with the loss, so that the row is not taken for an ignored one, where both are 0.
    alpha = torch.where((p / m).isnan(), torch.nan, -1 / (n_c * m))
    beta = torch.where(~(n_s < n_t) & ~(n_s <= eps), shrink / n_s, zero)
    gamma = torch.where(~(n_t <= n_s) & ~(n_t <= eps), shrink / n_t, zero)
    delta = torch.where(~(centre_norm <= eps), p / m / n_c / n_c, zero)
    return torch.stack([alpha, beta, gamma, delta])


def row_measures(terms: RowTerms, eps: float) -> Tensor:
    """What `ndfast.stats` takes the means of, [4, N]: cosine, ‖s‖/‖t‖, ‖s‖ ≥ ‖t‖, and one."""
    n_s, n_t, _, _, p = terms
    norm_ratio = n_s / n_t.clamp_min(eps)
    longer = torch.where(norm_ratio.isnan(), torch.nan, (n_s >= n_t).to(p.dtype))
    return torch.stack([p / n_s.clamp_min(eps), norm_ratio, longer, torch.ones_like(p)])


def accumulation_dtype(student: Tensor) -> torch.dtype:
    """Sums run in float32, for float64 students in float64; the loss has this dtype too."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def coefficients_of(saved: Tensor, num_coefficients: int, N: int) -> Tensor:
    """The first of the rows' coefficients in what forward has saved, [num_coefficients, N]."""
    return saved[1 : 1 + num_coefficients * N].view(num_coefficients, N)


def labels_in_range(labels: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The labels as int64, for uint8 wraps what it is compared with, and which are in [0, K)."""
    labels = labels.long()
    return labels, (labels >= 0) & (labels < K)


def gather_centres(
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
    dtype: torch.dtype,
) -> Tensor:
    """Each row's centre [N, D] in ``dtype``; NaN where a label is out of range."""
    if target is None:
        return class_means.to(dtype)

    def gather(labels: Tensor) -> Tensor:
        labels, in_range = labels_in_range(labels, class_means.shape[0])
        centres = class_means[torch.where(in_range, labels, 0)].to(dtype)
        return torch.where(in_range[:, None], centres, torch.nan)

    if target_b is None:
        return gather(target)
    share = lam_scalar if lam is None else lam.to(dtype)[:, None]
    return share * gather(target) + (1 - share) * gather(target_b)


def rows_that_count(
    target: Tensor | None, target_b: Tensor | None, ignore_index: int
) -> Tensor | None:
    """[N] bool, False where the row is ignored; None where every row counts by its kind."""
    if target is None:
        return None
    counts = target.long() != ignore_index
    return counts if target_b is None else counts & (target_b.long() != ignore_index)


def forward(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
    sample_weight: Tensor | None,
    weight: float,
    reduction: int,
    ignore_index: int,
    eps: float,
    num_coefficients: int,
    gradient: bool,
    upstream: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and what backward needs; see `ndfast.backends`."""
    dtype = accumulation_dtype(student)
    s = student.to(dtype)
    centres = gather_centres(class_means, target, target_b, lam, lam_scalar, dtype)
    terms = row_terms(s, None if teacher is None else teacher.to(dtype), centres, eps)

    row_weight = s.new_ones(len(s)) if sample_weight is None else sample_weight.to(dtype)
    counts = rows_that_count(target, target_b, ignore_index)
    if counts is not None:
        row_weight = torch.where(counts, row_weight, 0)
    factor = weight * row_weight
    if reduction == MEAN:
        denominator = row_weight.sum()
        factor = torch.where(denominator == 0, 0, factor / denominator)
    loss = factor * (1 - terms.projection / terms.larger_norm)
    if counts is not None:  # select, do not multiply: an ignored row may hold NaN
        loss = torch.where(counts, loss, 0)
    if reduction != NONE:
        loss = loss.sum()

    saved = s.new_ones(1 + num_coefficients * len(s))
    grad_student = student.new_empty(0)
    if num_coefficients:
        coefficients = factor * row_coefficients(terms, eps)
        if num_coefficients == 8:
            coefficients = torch.cat([coefficients, row_measures(terms, eps)])
        if counts is not None:
            coefficients = torch.where(counts, coefficients, 0)
        saved[1:] = coefficients[:num_coefficients].flatten()
    if gradient:
        ignored = _is_ignored(coefficients)
        if upstream != 1:
            coefficients = upstream * coefficients
        grad_student = _student_gradient(s, centres, coefficients, ignored)
        grad_student = grad_student.to(student.dtype).contiguous()
    return loss, saved, grad_student


def _is_ignored(coefficients: Tensor) -> Tensor:
    """[N, 1]: an ignored row has zeros for coefficients; its gradient is 0, even if it is NaN."""
    return ((coefficients[0] == 0) & (coefficients[1] == 0))[:, None]


def _student_gradient(s: Tensor, centres: Tensor, coefficients: Tensor, ignored: Tensor) -> Tensor:
    alpha, beta = coefficients[0, :, None], coefficients[1, :, None]
    return torch.where(ignored, 0, alpha * centres + beta * s)


def backward(
    grad_loss: Tensor,
    saved: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
    grad_features: Tensor | None,
    needs_student: bool,
    needs_teacher: bool,
    needs_class_means: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed, empty tensors for the others; see `ndfast.backends`."""
    dtype = accumulation_dtype(student)
    s = student.to(dtype)
    centres = gather_centres(class_means, target, target_b, lam, lam_scalar, dtype)
    coefficients = coefficients_of(saved, 4 if needs_teacher or needs_class_means else 2, len(s))
    ignored = _is_ignored(coefficients)
    coefficients = coefficients * (grad_loss * saved[0])
    grad_student = grad_teacher = grad_class_means = student.new_empty(0)
    if needs_student:
        grad_student = _student_gradient(s, centres, coefficients, ignored)
        if grad_features is not None:
            grad_student = grad_student + grad_features.to(dtype)
        grad_student = grad_student.to(student.dtype)
    if needs_teacher:
        assert teacher is not None
        gamma = coefficients[2, :, None]
        grad_teacher = torch.where(ignored, 0, gamma * teacher.to(dtype)).to(teacher.dtype)
    if needs_class_means:
        alpha, delta = coefficients[0, :, None], coefficients[3, :, None]
        grad_centres = torch.where(ignored, 0, alpha * s + delta * centres)
        labels = (target, target_b, lam, lam_scalar)
        grad_class_means = add_by_class(grad_centres, class_means, *labels)
    # The ops' fakes promise this, whatever strides the inputs have.
    return grad_student.contiguous(), grad_teacher.contiguous(), grad_class_means.contiguous()


def add_by_class(
    grad_centres: Tensor,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
) -> Tensor:
    """The class means' gradient [K, D], from that of the rows' centres [N, D]; rounded once.

    It is added up in a fixed order, and nothing waits for a GPU.
    """
    if target is None:
        return grad_centres.to(class_means.dtype)
    K, D = class_means.shape
    sums = grad_centres.new_zeros(K + _ROWS_OF_NO_CLASS, D)
    no_class = K + torch.arange(len(target), device=target.device) % _ROWS_OF_NO_CLASS

    def add(labels: Tensor, rows: Tensor) -> None:
        labels, in_range = labels_in_range(labels, K)
        _add_rows(sums, torch.where(in_range, labels, no_class), rows)

    if target_b is None:
        add(target, grad_centres)
    else:
        share = lam_scalar if lam is None else lam.to(grad_centres.dtype)[:, None]
        add(target, share * grad_centres)
        add(target_b, (1 - share) * grad_centres)
    return sums[:K].to(class_means.dtype)


def _add_rows(sums: Tensor, labels: Tensor, rows: Tensor) -> None:
    """In place: adds each row to that of its label, in an order that never changes."""
    if sums.is_cuda:  # index_add_ adds there in any order
        add_by_sorted_labels(sums, labels, rows)
    else:
        sums.index_add_(0, labels, rows)


def finish_gradient_(
    grad_student: Tensor, grad_loss: Tensor, saved: Tensor, student: Tensor, *others: Any
) -> None:
    """In place: the gradient that forward finished, for this upstream gradient."""
    # Anew, whatever the last of `others` says it was written for: a look would wait for a GPU.
    centres = others[:5]
    call = (grad_loss, saved, student, None, *centres, None, True, False, False)
    grad_student.copy_(backward(*call)[0])
