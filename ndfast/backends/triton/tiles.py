"""How kernels read and write rows: tiles [ROWS, BLOCK_D] of matrices [N, D].

Notation: a row's student feature s, teacher feature t and centre c (the class mean of its label),
each D long. An argument that is None is a compile-time constant, so an absent option leaves no
instruction behind. D is a constexpr because the mask of the last columns then keeps the alignment
that 16-byte accesses need: as a plain integer, D=1000 would be read four bytes at a time. Row
strides count ALIGN elements, for the same reason. (tl.multiple_of would say it too, but crashes
Triton 3.9 for tiles of one row: their offsets become scalars, the hint stays a matrix's.)
"""

# mypy: disallow-untyped-defs=False
# Annotations of kernels are Triton's: they set the type that an argument has on the GPU.

import triton
import triton.language as tl


@triton.jit
def load_tile(base, rows, stride, mask, start, D: tl.constexpr, BLOCK_D: tl.constexpr,
              ALIGN: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """Rows of the matrix ``base`` in ``dtype``; zeros where ``mask`` is off or a row has ended."""
    cols = start + tl.arange(0, BLOCK_D)[None, :]
    elements = base + rows[:, None] * stride * ALIGN + cols  # in this order all int64, as rows are
    return tl.load(elements, mask=mask[:, None] & (cols < D), other=0.0).to(dtype)


@triton.jit
def storable(values, pointer):
    """The values as they may be stored: from float64 to bfloat16 the interpreter writes garbage."""
    if pointer.dtype.element_ty == tl.bfloat16:
        values = values.to(tl.float32)
    return values


@triton.jit
def store_tile(base, rows, mask, start, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes rows of the contiguous matrix ``base`` in the matrix's dtype."""
    cols = start + tl.arange(0, BLOCK_D)[None, :]
    tl.store(base + rows[:, None] * D + cols, storable(tile, base), mask=mask[:, None] & (cols < D))


@triton.jit
def load_labels(target, target_b, lam, lam_scalar, rows, mask, K, dtype: tl.constexpr):
    """Where the rows' centres stand: (label, label_b, share of label, whether they are classes)."""
    label, label_b, in_range = rows, rows, mask
    share = tl.full((), lam_scalar, dtype)
    if target is not None:
        label = tl.load(target + rows, mask=mask, other=0).to(tl.int64)
        in_range = in_range & (label >= 0) & (label < K)
    if target_b is not None:
        label_b = tl.load(target_b + rows, mask=mask, other=0).to(tl.int64)
        in_range = in_range & (label_b >= 0) & (label_b < K)
        if lam is not None:
            share = tl.load(lam + rows, mask=mask, other=0.0).to(dtype)[:, None]
    return label, label_b, share, in_range


@triton.jit
def load_centres(class_means, label, target_b, label_b, share, stride, in_range, start,
                 D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
                 dtype: tl.constexpr):  # fmt: skip
    """The rows' centres; zeros, and nothing read, where a label is no class."""
    c = load_tile(class_means, label, stride, in_range, start, D, BLOCK_D, ALIGN, dtype)
    if target_b is not None:
        b = load_tile(class_means, label_b, stride, in_range, start, D, BLOCK_D, ALIGN, dtype)
        c = share * c + (1 - share) * b
    return c


@triton.jit
def is_ignored(alpha, beta):
    """[ROWS, 1]: an ignored row has zeros for coefficients; its gradient is 0, even of NaN."""
    return ((alpha == 0) & (beta == 0))[:, None]
