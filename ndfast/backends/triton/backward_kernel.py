"""The backward kernel: gradients from a row's coefficients, `ndfast.backends` describes them."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from ndfast.backends.triton.tiles import (
    is_ignored,
    load_centres,
    load_labels,
    load_tile,
    store_tile,
)

# Their values bring the compiler nothing that ALIGN does not, and each kind would be compiled anew.
_PLAIN_INTEGERS = [
    "N", "K", "grad_loss_stride", "student_stride", "teacher_stride", "class_means_stride",
    "grad_features_stride",
]  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN_INTEGERS)
def backward_kernel(
    student, teacher, class_means, target, target_b, lam, grad_loss, saved,
    grad_features, grad_student, grad_teacher, grad_centres,
    student_stride, teacher_stride, class_means_stride, grad_features_stride, grad_loss_stride,
    N, K, lam_scalar: tl.float64, written_for: tl.float64,
    D: tl.constexpr, ALIGN: tl.constexpr, FINISHED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """∂s = alpha·c + beta·s, ∂t = gamma·t, ∂c = alpha·s + delta·c, those that are not None.

    To ∂s is added what the features' gradient is already, ``grad_features``, rounded once.

    Moves what it reads and writes through memory once, class means through L2: rows are
    independent and nothing is summed, so rows of any length go block by block. With FINISHED the
    gradients hold what is right for the upstream gradient ``written_for``: of such a row nothing is
    moved, and with one upstream gradient for all rows the program leaves at once.
    """
    dtype: tl.constexpr = saved.dtype.element_ty
    rest = tl.load(saved)
    coefficients = saved + 1
    groups = tl.cdiv(N, ROWS)
    if FINISHED:
        one_for_all = grad_loss_stride == 0
        finished = tl.full((), written_for, dtype)
        groups = tl.where(one_for_all & (tl.load(grad_loss) * rest == finished), 0, groups)
    for group in range(tl.program_id(0), groups, tl.num_programs(0)):
        rows = tl.arange(0, ROWS).to(tl.int64) + group * ROWS
        in_batch = rows < N
        upstream = tl.load(grad_loss + rows * grad_loss_stride, mask=in_batch, other=1.0) * rest
        if FINISHED:
            in_batch = in_batch & (upstream != finished)
        if class_means is not None:
            label, label_b, share, in_range = load_labels(
                target, target_b, lam, lam_scalar, rows, in_batch, K, dtype
            )
        alpha = tl.load(coefficients + rows, mask=in_batch, other=0.0)
        beta = tl.load(coefficients + N + rows, mask=in_batch, other=0.0)
        ignored = is_ignored(alpha, beta)
        after_two = coefficients + 2 * tl.cast(N, tl.int64)
        if grad_teacher is not None:
            gamma = upstream * tl.load(after_two + rows, mask=in_batch, other=0.0)
        if grad_centres is not None:
            delta = upstream * tl.load(after_two + N + rows, mask=in_batch, other=0.0)
        alpha *= upstream
        beta *= upstream
        if class_means is not None:  # a label that is no class has the centre NaN
            alpha = tl.where(in_range, alpha, float("nan"))
        for start in range(0, D, BLOCK_D):
            if class_means is not None:
                s = load_tile(
                    student, rows, student_stride, in_batch, start, D, BLOCK_D, ALIGN, dtype
                )
                c = load_centres(
                    class_means, label, target_b, label_b, share, class_means_stride, in_range,
                    start, D, BLOCK_D, ALIGN, dtype,
                )  # fmt: skip
            if grad_features is not None:
                g = load_tile(
                    grad_features, rows, grad_features_stride, in_batch, start, D, BLOCK_D, ALIGN,
                    dtype,
                )  # fmt: skip
            if grad_teacher is not None:
                t = load_tile(
                    teacher, rows, teacher_stride, in_batch, start, D, BLOCK_D, ALIGN, dtype
                )
                gradient = tl.where(ignored, 0, gamma[:, None] * t)
                store_tile(grad_teacher, rows, in_batch, start, gradient, D, BLOCK_D)
            if grad_student is not None:
                gradient = alpha[:, None] * c + beta[:, None] * s
                if grad_features is not None:
                    gradient = tl.where(ignored, g, g + gradient)
                else:
                    gradient = tl.where(ignored, 0, gradient)
                store_tile(grad_student, rows, in_batch, start, gradient, D, BLOCK_D)
            if grad_centres is not None:
                gradient = tl.where(ignored, 0, alpha[:, None] * s + delta[:, None] * c)
                store_tile(grad_centres, rows, in_batch, start, gradient, D, BLOCK_D)
