"""The public functions; what their arguments may be is in `ndfast.arguments`."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from ndfast.arguments import check_and_flatten
from ndfast.autograd import attach_nd_loss_rows, nd_loss_rows
from ndfast.labels import Mix
from ndfast.saved import name_inference_tensor
from ndfast.stats import NDStats, stats_of


@overload
def nd_loss(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    *,
    weight: float = ...,
    sample_weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    eps: float = ...,
    validate: bool = ...,
    return_stats: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def nd_loss(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    *,
    weight: float = ...,
    sample_weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    eps: float = ...,
    validate: bool = ...,
    return_stats: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, NDStats]: ...


def nd_loss(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    *,
    weight: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    eps: float = 1e-8,
    validate: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, NDStats]:
    """The ND loss of KD++: pulls features towards their class mean's direction and a large norm.

        ℓ_i = 1 − ⟨s_i, c_i / ‖c_i‖⟩ / max(‖s_i‖, ‖t_i‖)

    with c_i the teacher's class mean of row i's label. Every norm that is divided by is at
    least ``eps``; a tie of the norms belongs to the student. Gradients go to ``student``, and to
    ``teacher`` and ``class_means`` where these require them. Double backward is an error.

    Source: "Improving Knowledge Distillation via Regularizing Feature Direction and Norm", ECCV
    2024, arXiv 2305.17007.

    Args:
        student: penultimate features [N, D], [N, D, 1, 1], or [N, D, d1, ...] as cross_entropy has
            them; float16, bfloat16, float32 or float64. May be non-contiguous.
        teacher: the teacher's features, shaped as ``student``; or their norms [N] (or
            [N, d1, ...]), a constant; or None, for the direction-only loss with m = ‖s‖.
        class_means: the teacher's mean feature of each class [K, D]; with ``target=None`` one
            centre a row, shaped as ``student``, or [N, D] beside [N, D, 1, 1].
        target: class indices [N] (or [N, d1, ...]) of int64, int32 or uint8; or `Mix`; or class
            probabilities [N, K] (or [N, K, d1, ...]), whose centre is probabilities @ class_means;
            or None.
        weight: the loss's factor, multiplied in the kernel.
        sample_weight: a weight a row [N] (or [N, d1, ...]); a constant.
        reduction: "mean" divides by the number of rows that are not ignored, or by the sum of their
            sample weights, and is 0 where that is 0; "sum"; or "none".
        ignore_index: rows with this label give loss 0 and gradient 0.
        eps: lower bound of the norms that are divided by: 0, or 2**-126 and more.
        validate: check the range of labels, and of shares of `Mix`, which synchronises with a GPU
            and cannot be compiled with ``fullgraph=True``. Labels on the CPU are always looked at;
            on a GPU, without it, such a row's loss and gradient are NaN.
        return_stats: also return `ndfast.NDStats`, from what the same pass has summed up.
        backend: "native", "cuda", "triton" or "reference"; by default the fastest that can run.

    Returns:
        The loss, float32 (float64 for float64 features); 0-dim, or shaped as the rows are for
        ``reduction="none"``. With ``return_stats`` ``(loss, stats)``.

    Raises:
        TypeError: an argument has a type or dtype that is not taken.
        ValueError: shapes, lengths or devices do not fit, a number or name is not taken, or a
            constant requires a gradient.
        IndexError: a label is out of range (CPU, or ``validate=True``).
        RuntimeError: the backend asked for by name cannot run here.

    Examples:
        >>> loss = ce + kd + ndfast.nd_loss(s_emb, t_emb, class_means, labels, weight=2.0)
    """
    rows, rows_shape = check_and_flatten(
        student, teacher, class_means, target, weight, sample_weight, reduction, ignore_index, eps,
        validate, backend,
    )  # fmt: skip
    try:
        loss, measures = nd_loss_rows(rows, backend, return_stats)
    except RuntimeError as error:
        raise name_inference_tensor(error, rows) from None
    if rows_shape is not None:
        loss = loss.view(rows_shape)
    return loss if measures is None else (loss, stats_of(rows, measures))


@overload
def attach_nd_loss(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    *,
    weight: float = ...,
    sample_weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    eps: float = ...,
    validate: bool = ...,
    return_stats: Literal[False] = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def attach_nd_loss(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    *,
    weight: float = ...,
    sample_weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    eps: float = ...,
    validate: bool = ...,
    return_stats: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor, NDStats]: ...


def attach_nd_loss(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    *,
    weight: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    eps: float = 1e-8,
    validate: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, NDStats]:
    """`nd_loss` whose gradient joins the classifier's in one kernel.

    A student's features go into the classifier and into the loss. With `nd_loss` backward makes
    two gradients of them, which autograd adds up in a kernel of its own. Here the classifier goes
    on from the returned features, and backward reads its gradient, adds the loss's and writes
    their sum, rounded once; under torch.compile too. Under torch.func autograd adds them up.

    Arguments and errors are those of `nd_loss`.

    Returns:
        ``(features, loss)``. The features are a view of ``student`` with its shape and strides, or
        ``student`` itself where it needs no gradient; autograd refuses to change the view in place,
        as ReLU(inplace=True) would. The loss is that of `nd_loss`. Either may be left unused. With
        ``return_stats`` ``(features, loss, stats)``.

    Examples:
        >>> features, nd = ndfast.attach_nd_loss(features, t_emb, class_means, labels, weight=2.0)
        >>> loss = F.cross_entropy(classifier(features), labels) + nd
    """
    rows, rows_shape = check_and_flatten(
        student, teacher, class_means, target, weight, sample_weight, reduction, ignore_index, eps,
        validate, backend,
    )  # fmt: skip
    try:
        features, loss, measures = attach_nd_loss_rows(student, rows, backend, return_stats)
    except RuntimeError as error:
        raise name_inference_tensor(error, rows) from None
    if rows_shape is not None:
        loss = loss.view(rows_shape)
    return (features, loss) if measures is None else (features, loss, stats_of(rows, measures))
