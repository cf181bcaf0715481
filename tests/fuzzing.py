"""A call of the loss with any of its options, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from cases import Case
from hypothesis import strategies as st
from torch import Tensor
from torch.linalg import vector_norm

import ndfast

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DOUBLE = torch.float64

# Rows by row; where eps is 0, squares that leave float32's range leave nothing to compare.
VALUES = ("normal", "integers", "some zero", "huge", "any size", "nan", "inf", "-inf")
SMALL_VALUES = ("tiny", "subnormal", "around eps")
LAYOUTS = ("contiguous", "transposed", "strided", "offset", "expanded")
TARGETS = ("indices", "mix", "mix by one tensor", "mix by row", "probabilities", "a centre a row")


@dataclass(frozen=True)
class Call:
    """One call. As it is printed it is the line to keep in test_fuzz.py, should it fail."""

    seed: int
    N: int
    D: int
    K: int
    rest: tuple[int, ...]  # d1, ... of [N, D, d1, ...]
    rows_as_rest: bool  # whether the rows of [N, D, 1, 1] are [N, 1, 1] or [N]
    attached: bool
    needs: tuple[str, ...]  # which inputs require a gradient
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]  # of student, teacher and class means
    values: tuple[str, str, str]
    layouts: tuple[str, str, str]
    other_dtype: torch.dtype  # of sample weights, lam and probabilities
    other_layout: str  # of those, the labels and the upstream gradients
    teacher: str
    target: str
    label_dtypes: tuple[torch.dtype, torch.dtype]
    ignore_index: int
    ignored: float  # about this share of the rows
    lam: float
    weighted: bool
    weight: float
    reduction: str
    eps: float
    upstream: str
    expected: str  # which upstream gradient forward expects, where it can
    backward_twice: bool
    stats: bool
    validate: bool


@lru_cache(maxsize=None, typed=True)
def _among(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


# Past 4096 the native backend's sums, past 1024 a thread's part of a row go on anew.
WIDTHS = 5 * (*range(1, 41),) + (*range(41, 301), 1031, 2050, 4099)


@st.composite
def calls(draw: Callable[[Any], Any], dtypes: tuple[torch.dtype, ...] = DTYPES) -> Call:
    """Every option of nd_loss and attach_nd_loss; the simplest value of each comes first."""

    def one_of(*values: Any) -> Any:
        return draw(_among(*values))

    def three(*values: Any) -> Any:
        return one_of(*values), one_of(*values), one_of(*values)

    eps = one_of(1e-8, 1e-12, 0.5, 0.0)
    sizes = VALUES if eps == 0 else VALUES + SMALL_VALUES
    student, teacher, class_means = three("normal", *sizes)
    teacher = one_of(teacher, "the student's")
    class_means = one_of(class_means, class_means, "along the students")
    labels = (torch.int64, torch.int32, torch.uint8)
    return Call(
        seed=draw(st.integers(0, 2**32 - 1)),
        N=one_of(1, 2, 3, 0, 5, 8, 33),
        D=one_of(*WIDTHS),
        K=one_of(1, 2, 3, 5, 17, 260),
        rest=one_of((), (), (), (1, 1), (2,), (2, 3)),
        rows_as_rest=one_of(False, True),
        attached=one_of(False, True),
        needs=one_of(
            ("student",), ("student", "teacher", "class_means"), ("student", "teacher"),
            ("student", "class_means"), ("teacher",), ("class_means",), (),
        ),
        dtypes=one_of((one_of(*dtypes),) * 3, three(*dtypes)),
        values=(student, teacher, class_means),
        layouts=one_of(("contiguous",) * 3, three(*LAYOUTS)),
        other_dtype=one_of(*DTYPES),
        other_layout=one_of("contiguous", *LAYOUTS),
        teacher=one_of("features", "norms", "absent"),
        target=one_of(*TARGETS),
        label_dtypes=(one_of(*labels), one_of(*labels)),
        ignore_index=one_of(-100, 0, 255, 300),
        ignored=one_of(0.0, 0.3, 1.0),
        lam=one_of(0.3, 0, 1, 0.999),
        weighted=one_of(False, True),
        weight=one_of(1.0, 1.7, -2, 0, 1e-3),
        reduction=one_of("mean", "sum", "none"),
        eps=eps,
        upstream=one_of("one", "random", "zero"),
        expected=one_of("as at first", "this", "another"),
        backward_twice=one_of(False, False, True),
        stats=one_of(False, True),
        validate=one_of(False, True),
    )  # fmt: skip


def case_of(call: Call) -> Case:
    """The tensors of a call."""
    random = torch.Generator().manual_seed(call.seed)
    N, D, K = call.N, call.D, call.K
    rows_shape = (N, *call.rest)
    if call.rest == (1, 1) and not (call.rows_as_rest and call.target != "a centre a row"):
        rows_shape = (N,)
    R = N * int(torch.tensor(call.rest).prod())

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=DOUBLE)

    def rows(which: int, count: int, width: int = D) -> Tensor:
        numbers = _values(call.values[which], count, width, call.eps, random)
        return _cast(numbers, call.dtypes[which], call.layouts[which])

    def labels(dtype: torch.dtype) -> Tensor:
        is_uint8 = dtype == torch.uint8
        drawn = (uniform(R) * (min(K, 256) if is_uint8 else K)).long()
        if not is_uint8 or 0 <= call.ignore_index < 256:
            drawn[uniform(R) < call.ignored] = call.ignore_index
        return other(_same_rows(drawn, call.other_layout).to(dtype).view(rows_shape))

    def other(tensor: Tensor) -> Tensor:
        return _laid_out(tensor, call.other_layout)

    def a_row(numbers: Tensor, dtype: torch.dtype = call.other_dtype) -> Tensor:
        return other(_same_rows(numbers, call.other_layout).to(dtype).view(rows_shape))

    def features(numbers: Tensor, layout: str) -> Tensor:
        shaped = numbers.view(N, *call.rest, numbers.shape[1]).movedim(-1, 1)
        return _laid_out(shaped, layout)

    students = rows(0, R)
    centres = rows(2, R if call.target == "a centre a row" else K)
    if call.values[2] == "along the students" and R > 0:
        along = students[torch.arange(len(centres)) % R].to(DOUBLE) * -1.5
        centres = _cast(along, call.dtypes[2], call.layouts[2])
    teachers = students if call.values[1] == "the student's" else rows(1, R)
    teachers = _cast(teachers.to(DOUBLE), call.dtypes[1], call.layouts[1])
    if call.teacher == "norms":
        teachers = vector_norm(teachers.to(DOUBLE), dim=1).to(teachers.dtype)
    alike = call.dtypes[0] == call.dtypes[1] and call.layouts[0] == call.layouts[1]
    teachers = _apart(teachers, students, alike and call.teacher == "features")

    target: Any = None
    if call.target == "indices":
        target = labels(call.label_dtypes[0])
    elif call.target == "probabilities":
        shares = _same_rows(uniform(R, K), call.other_layout)
        shares = (shares / shares.sum(dim=1, keepdim=True)).to(call.other_dtype)
        target = features(shares, call.other_layout)
        if rows_shape == (N,):
            target = target.view(N, K)
    elif call.target.startswith("mix"):
        lam: Any = {
            "mix": call.lam,
            "mix by one tensor": torch.tensor(call.lam, dtype=call.other_dtype),
            "mix by row": a_row(uniform(R)),
        }[call.target]
        target = ndfast.Mix(labels(call.label_dtypes[0]), labels(call.label_dtypes[1]), lam)

    options = {
        "weight": call.weight,
        "reduction": call.reduction,
        "ignore_index": call.ignore_index,
        "eps": call.eps,
        "validate": call.validate,
    }
    if call.weighted:
        options["sample_weight"] = a_row(uniform(R) * (uniform(R) < 0.7))
    upstream = {"one": torch.ones, "zero": torch.zeros, "random": uniform}[call.upstream]
    teacher = {
        "features": lambda: features(teachers, call.layouts[1]),
        "norms": lambda: _laid_out(teachers.view(rows_shape), call.layouts[1]),
        "absent": lambda: None,
    }[call.teacher]()
    class_means = features(centres, "contiguous") if target is None else centres
    grad_features = None
    if call.attached:
        added = _values("normal", R, D, call.eps, random) * 0.02
        added = _cast(added, call.dtypes[0], call.other_layout)
        grad_features = features(added, call.other_layout)
    return Case(
        features(students, call.layouts[0]),
        teacher,
        _laid_out(class_means, call.layouts[2]),
        target,
        options,
        a_row(upstream(R), torch.float32) if call.reduction == "none" else upstream(()).float(),
        grad_features,
    )


def _values(kind: str, rows: int, width: int, eps: float, random: torch.Generator) -> Tensor:
    """[rows, width] of a kind of VALUES, float64."""
    normal = torch.randn(rows, width, generator=random, dtype=DOUBLE)
    each = torch.rand(rows, 1, generator=random, dtype=DOUBLE)
    if kind in ("nan", "inf", "-inf") and rows > 0:
        normal[int(each[0] * rows), int(each[-1] * width)] = float(kind)
    factor = {
        "some zero": (each < 0.5).to(DOUBLE),
        "huge": 1e14,
        "any size": 10 ** (28 * each - 14),
        "tiny": 1e-20,
        "subnormal": 1e-40,
        # not so near that float32 and float64 may disagree about which side
        "around eps": (each + torch.where(each < 0.5, 0.2, 1))
        * (eps / vector_norm(normal, dim=1, keepdim=True)),
    }.get(kind, 1.0)
    return normal.mul(2).round().clamp(-2, 2) if kind == "integers" else normal * factor


def _cast(numbers: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    if dtype == torch.float16 and numbers.numel() > 0:  # what is beyond its range stays finite
        largest = numbers.nan_to_num(0, 0, 0).abs().max()
        numbers = numbers / (largest / 6e4).clamp_min(1)
    return _same_rows(numbers, layout).to(dtype)


def _same_rows(numbers: Tensor, layout: str) -> Tensor:
    """For a layout that can only hold the same row again and again."""
    return numbers[:1].expand_as(numbers) if layout == "expanded" and len(numbers) else numbers


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory, among numbers that must not be read."""
    wrong = float("nan") if x.is_floating_point() else 99
    if layout == "transposed":
        axes = tuple(range(x.dim()))[::-1]
        return x.permute(axes).contiguous().permute(axes)
    if layout == "strided":
        whole = x.new_full([2 * n for n in x.shape], wrong)
        return whole[(slice(None, None, 2),) * x.dim()].copy_(x)
    if layout == "offset":
        whole = x.new_full([n + 1 for n in x.shape], wrong)
        return whole[(slice(1, None),) * x.dim()].copy_(x)
    if layout == "expanded" and x.numel() > 0:
        keep = tuple(slice(None) if axis == 1 else slice(1) for axis in range(x.dim()))
        return x[keep].expand(x.shape)
    return x.contiguous()


def _apart(teachers: Tensor, students: Tensor, alike: bool) -> Tensor:
    """Norms are equal, or so far apart that rounding does not decide which one leads.

    Those that are equal in float64 are so in float32 where they are added up ``alike``, or exact.
    """
    margin = 1e-12 if students.dtype == DOUBLE else 1e-5
    n_s = vector_norm(students.to(DOUBLE), dim=1)
    are_norms = teachers.dim() == 1
    may_be_equal = (n_s == n_s.round()) & (n_s < 1000) | alike
    while True:
        n_t = teachers.to(DOUBLE) if are_norms else vector_norm(teachers.to(DOUBLE), dim=1)
        is_near = (n_s - n_t).abs() < margin * n_s
        if not (is_near & ~((n_s == n_t) & may_be_equal)).any():
            return teachers
        teachers = teachers * 2
