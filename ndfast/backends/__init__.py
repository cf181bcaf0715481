"""The backends: modules with one interface, chosen by `ndfast.dispatch`.

Each has, on real tensors whose shapes and dtypes `ndfast.arguments` has checked:

- ``unusable(device)``: None, or the sentence that says why it cannot run on that device.
- ``forward(*rows, num_coefficients, gradient, upstream=1.0)`` -> ``(loss, saved, grad_student)``,
  of `Rows`; ``upstream`` is the upstream gradient that the gradient is written for.
- ``backward(*gradients)`` -> ``(grad_student, grad_teacher, grad_class_means)``, of `Gradients`.
- ``finish_gradient_(grad_student, grad_loss, saved, student, *rows.centres, written_for=1.0)``: in
  place, makes forward's ``grad_student`` right for this upstream gradient. Where ``grad_loss *
  scale`` is ``written_for`` it is right already and nothing is moved; otherwise it is written anew
  from the coefficients: as many bytes as scaling it, and rounded once, not twice.

``saved`` is one tensor for backward, for each is an allocation: ``scale``, and then the rows'
coefficients [num_coefficients, N], which a row's gradients are made of: 0, 2 (alpha, beta: the
student's), 4 (and gamma, delta: the teacher's and the class means') or 8 (and the measures of
`reference.row_measures`, for `ndfast.stats`). ``grad_student`` [N, D] is the finished gradient
(only where ``gradient``, and coefficients with it). It and the coefficients, but not the measures,
lack the factor ``scale``: the part of the mean's denominator that one pass over the rows cannot
know. A backend's ``is_unscaled`` says that it is always 1. An ignored row has zeros in all. What is
not asked for comes back as an empty tensor.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ndfast.labels import check_label_range

_Optional = Tensor | None


class Rows(NamedTuple):
    """What the loss is computed of; the functions of a backend and the ops take it one by one."""

    student: Tensor  # [N, D]
    teacher: Tensor | None  # [N, D], or [N]: its norms
    class_means: Tensor  # [K, D]
    target: Tensor | None  # [N] integers; None for one centre a row: [N, D] class means
    target_b: Tensor | None  # [N] integers
    lam: Tensor | None  # [N]; None where lam_scalar holds for every row
    lam_scalar: float
    sample_weight: Tensor | None  # [N]
    weight: float
    reduction: int  # 0 none, 1 mean, 2 sum
    ignore_index: int
    eps: float

    @property
    def inputs(self) -> tuple[Tensor, _Optional, Tensor, _Optional, _Optional, _Optional, float]:
        """What backward takes of it."""
        return self[:7]

    @property
    def centres(self) -> tuple[Tensor, _Optional, _Optional, _Optional, float]:
        """The class means, and which of them or which mixture of two a row's centre is."""
        return self[2:7]

    def check_labels(self) -> None:
        """Raises IndexError for a label out of range, naming its row; synchronises with a GPU."""
        check_label_range(self.target, self.target_b, len(self.class_means), self.ignore_index)


class Gradients(NamedTuple):
    """What backward is asked for; the functions of a backend and the op take it one by one."""

    grad_loss: Tensor  # [N] or 0-dim
    saved: Tensor
    student: Tensor  # here to lam_scalar: Rows.inputs
    teacher: Tensor | None
    class_means: Tensor
    target: Tensor | None
    target_b: Tensor | None
    lam: Tensor | None
    lam_scalar: float
    # Only with needs_student: a gradient [N, D] in the student's dtype that goes into grad_student.
    # Added in the dtype of the sums, so that the sum is rounded once, and never written. A row that
    # is ignored gets it as it is.
    grad_features: Tensor | None
    needs_student: bool
    needs_teacher: bool
    needs_class_means: bool

    @property
    def centres(self) -> tuple[Tensor, _Optional, _Optional, _Optional, float]:
        """As `Rows.centres`."""
        return self[4:9]
