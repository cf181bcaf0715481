"""The forward kernel: loss, coefficients and gradient of the student in one launch."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from ndfast.backends import reference
from ndfast.backends.triton.tiles import (
    is_ignored,
    load_centres,
    load_labels,
    load_tile,
    store_tile,
)

_NONE = tl.constexpr(reference.NONE)
_MEAN = tl.constexpr(reference.MEAN)
_BLOCK_PARTIALS = tl.constexpr(512)  # at four warps four of each sum a thread, few registers


# Their values bring the compiler nothing that ALIGN does not, and each kind would be compiled anew.
_PLAIN_INTEGERS = [
    "N", "K", "ignore_index", "student_stride", "teacher_stride", "class_means_stride",
]  # fmt: skip


@triton.jit
def _add3(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _add4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit(do_not_specialize=_PLAIN_INTEGERS)
def forward_kernel(
    student, teacher, teacher_norms, class_means, target, target_b, lam, sample_weight,
    loss, scale, coefficients, grad_student, partials, ticket,
    student_stride, teacher_stride, class_means_stride, N, K, ignore_index,
    lam_scalar: tl.float64, factor: tl.float64, eps: tl.float64,
    upstream: tl.float32, upstream_in_double: tl.float64,
    D: tl.constexpr, ALIGN: tl.constexpr, REDUCTION: tl.constexpr, NUM_COEFFICIENTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Moves s, t and ∂s through memory once, the centres through L2.

    Of a row longer than BLOCK_D, all but the first block is read once more for the gradient.
    ``factor`` is weight, for the mean over N: the gradient is written before the denominator is
    known, and ``scale`` makes up for it. ``upstream`` is the gradient of the loss that ∂s is for,
    given in both types of the sums: converted here, ptxas for sm_100 has loads wait for the sums.
    """
    dtype: tl.constexpr = loss.dtype.element_ty
    least = tl.full((), eps, dtype)
    loss_sums = tl.zeros((ROWS,), tl.float64)
    denominators = tl.zeros((ROWS,), tl.float64)
    for group in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = tl.arange(0, ROWS).to(tl.int64) + group * ROWS
        in_batch = rows < N
        # The centre waits for its label, so the labels come first. All loads of the first block
        # stand before the sums: a load behind their shuffles would wait for them.
        label, label_b, share, in_range = load_labels(
            target, target_b, lam, lam_scalar, rows, in_batch, K, dtype
        )
        s = load_tile(student, rows, student_stride, in_batch, 0, D, BLOCK_D, ALIGN, dtype)
        if teacher is not None:
            t = load_tile(teacher, rows, teacher_stride, in_batch, 0, D, BLOCK_D, ALIGN, dtype)
            tt = t * t
        if teacher_norms is not None:
            teacher_norm = tl.load(teacher_norms + rows, mask=in_batch, other=0.0).to(dtype)
        if sample_weight is not None:
            row_weight = tl.load(sample_weight + rows, mask=in_batch, other=0.0).to(dtype)
        else:
            row_weight = tl.full((ROWS,), 1.0, dtype)
        c = load_centres(
            class_means, label, target_b, label_b, share, class_means_stride, in_range,
            0, D, BLOCK_D, ALIGN, dtype,
        )  # fmt: skip
        ss, sc, cc = s * s, s * c, c * c
        for start in range(BLOCK_D, D, BLOCK_D):
            s_i = load_tile(
                student, rows, student_stride, in_batch, start, D, BLOCK_D, ALIGN, dtype
            )
            if teacher is not None:
                t_i = load_tile(
                    teacher, rows, teacher_stride, in_batch, start, D, BLOCK_D, ALIGN, dtype
                )
                tt += t_i * t_i
            c_i = load_centres(
                class_means, label, target_b, label_b, share, class_means_stride, in_range,
                start, D, BLOCK_D, ALIGN, dtype,
            )  # fmt: skip
            ss += s_i * s_i
            sc += s_i * c_i
            cc += c_i * c_i

        # One reduction of a tuple has the barriers of one sum. With Triton 3.9 the last sum is
        # shuffled first: were it one without c, ptxas would put loads of c behind its shuffles.
        if teacher is not None:
            tt, ss, sc, cc = tl.reduce((tt, ss, sc, cc), 1, _add4)
            teacher_norm = tl.sqrt(tt)
        else:
            ss, sc, cc = tl.reduce((ss, sc, cc), 1, _add3)
            if teacher_norms is None:
                teacher_norm = tl.zeros((ROWS,), dtype)

        # As in the reference, comparisons are written so that a NaN norm goes on.
        student_norm = tl.sqrt(ss)
        centre_norm = tl.where(in_range, tl.sqrt(cc), float("nan"))
        n_c = tl.where(centre_norm <= least, least, centre_norm)
        teacher_is_larger = (teacher_norm > student_norm) | (teacher_norm != teacher_norm)
        m = tl.where(teacher_is_larger, teacher_norm, student_norm)
        m = tl.where(m <= least, least, m)
        by_m, by_n_c = 1 / m, 1 / n_c  # as in csrc/row_math.h: two divisions in all
        cosine = sc * by_n_c * by_m

        counts = in_batch
        if target is not None:
            counts = counts & (label != ignore_index)
        if target_b is not None:
            counts = counts & (label_b != ignore_index)
        row_weight = tl.where(counts, row_weight, 0)
        row_factor = row_weight * tl.full((), factor, dtype)
        row_loss = tl.where(counts, 1 - cosine, 0)
        if REDUCTION == _NONE:
            tl.store(loss + rows, row_factor * row_loss, mask=in_batch)
        else:
            loss_sums += (row_weight * row_loss).to(tl.float64)
        if REDUCTION == _MEAN:
            denominators += row_weight.to(tl.float64)

        if NUM_COEFFICIENTS > 0 or grad_student is not None:
            shrink = cosine * by_m * by_m  # p / (m^2 n), where n, the larger norm, is m
            student_is_m = ~(student_norm < teacher_norm) & ~(student_norm <= least)
            beta = tl.where(student_is_m, shrink, 0)
            # NaN with the loss, so that the row is not taken for an ignored one.
            alpha = tl.where(cosine == cosine, -by_n_c * by_m, cosine)
            alpha = tl.where(counts, row_factor * alpha, 0)
            beta = tl.where(counts, row_factor * beta, 0)
            if NUM_COEFFICIENTS > 0:
                tl.store(coefficients + rows, alpha, mask=in_batch)
                tl.store(coefficients + N + rows, beta, mask=in_batch)
            if NUM_COEFFICIENTS >= 4:
                teacher_is_m = ~(teacher_norm <= student_norm) & ~(teacher_norm <= least)
                gamma = tl.where(teacher_is_m, shrink, 0)
                gamma = tl.where(counts, row_factor * gamma, 0)
                delta = tl.where(centre_norm <= least, 0, cosine * by_n_c * by_n_c)
                delta = tl.where(counts, row_factor * delta, 0)
                after_two = coefficients + 2 * tl.cast(N, tl.int64)
                tl.store(after_two + rows, gamma, mask=in_batch)
                tl.store(after_two + N + rows, delta, mask=in_batch)
            if NUM_COEFFICIENTS == 8:
                n_s = tl.where(student_norm <= least, least, student_norm)
                ratio = student_norm / tl.where(teacher_norm <= least, least, teacher_norm)
                longer = (student_norm >= teacher_norm).to(dtype)
                longer = tl.where(ratio == ratio, longer, ratio)
                after_four = coefficients + 4 * tl.cast(N, tl.int64)
                after_six = after_four + 2 * tl.cast(N, tl.int64)
                tl.store(after_four + rows, tl.where(counts, sc * by_n_c / n_s, 0), mask=in_batch)
                tl.store(after_four + N + rows, tl.where(counts, ratio, 0), mask=in_batch)
                tl.store(after_six + rows, tl.where(counts, longer, 0), mask=in_batch)
                tl.store(after_six + N + rows, counts.to(dtype), mask=in_batch)
            if grad_student is not None:
                ignored = is_ignored(alpha, beta)
                if dtype == tl.float64:
                    alpha *= upstream_in_double
                    beta *= upstream_in_double
                else:
                    alpha *= upstream
                    beta *= upstream
                gradient = tl.where(ignored, 0, alpha[:, None] * c + beta[:, None] * s)
                store_tile(grad_student, rows, in_batch, 0, gradient, D, BLOCK_D)
                for start in range(BLOCK_D, D, BLOCK_D):
                    s_i = load_tile(
                        student, rows, student_stride, in_batch, start, D, BLOCK_D, ALIGN, dtype
                    )
                    c_i = load_centres(
                        class_means, label, target_b, label_b, share, class_means_stride, in_range,
                        start, D, BLOCK_D, ALIGN, dtype,
                    )  # fmt: skip
                    gradient = tl.where(ignored, 0, alpha[:, None] * c_i + beta[:, None] * s_i)
                    store_tile(grad_student, rows, in_batch, start, gradient, D, BLOCK_D)

    if REDUCTION == _NONE:
        if tl.program_id(0) == 0:
            tl.store(scale, 1.0)
    else:
        _finish_loss(partials, ticket, loss, scale, N, factor, loss_sums, denominators, REDUCTION)


@triton.jit
def _finish_loss(partials, ticket, loss, scale, N, factor, loss_sums, denominators,
                 REDUCTION: tl.constexpr):  # fmt: skip
    """Adds all programs' sums up in the program that comes last, in an order that never changes.

    ``ticket`` counts the programs that have stored theirs, and is 0 again for the next launch.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    tl.store(partials + program, tl.sum(loss_sums, 0))
    if REDUCTION == _MEAN:
        tl.store(partials + programs + program, tl.sum(denominators, 0))
    tl.debug_barrier()  # whichever thread takes the ticket, the stores come before it
    if tl.atomic_add(ticket, 1, sem="acq_rel") == programs - 1:
        tl.store(ticket, 0)
        sums = tl.zeros((_BLOCK_PARTIALS,), tl.float64)
        weights = tl.zeros((_BLOCK_PARTIALS,), tl.float64)
        for start in range(0, programs, _BLOCK_PARTIALS):
            i = start + tl.arange(0, _BLOCK_PARTIALS)
            sums += tl.load(partials + i, mask=i < programs, other=0.0)
            if REDUCTION == _MEAN:
                weights += tl.load(partials + programs + i, mask=i < programs, other=0.0)
        rest = tl.full((), 1.0, tl.float64)
        if REDUCTION == _MEAN:
            denominator = tl.sum(weights, 0)
            rest = tl.where(denominator == 0, 0.0, N / denominator)
        tl.store(scale, rest)
        tl.store(loss, tl.sum(sums, 0) * factor * rest)
