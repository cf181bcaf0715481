"""A plain program of small calls, for compute-sanitizer (run_sanitizer.py) to watch.

`python tests/gpu/sanitize.py --backend cuda` makes every call, forward and backward.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # pytest has put both in the path
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from cases import draw, every_option
from on_gpu import DTYPES, HALVES, shifted, student_gradient, to_gpu
from spreads import with_rows_of_class
from torch import Tensor

import ndfast

# Rows and features: one of each, odd ones, a warp's row, a block's, and more than a block holds.
SHAPES = [
    (1, 1), (2, 3), (3, 31), (9, 37), (4, 64), (33, 65), (5, 127), (2, 512), (3, 513), (300, 40),
    (2, 1000), (3, 1024), (2, 2049), (1, 4096), (2, 9000), (0, 64),
]  # fmt: skip
# Pieces of 16 bytes in a row, one for each way that they lie on threads: 4 lanes with two each and
# with four, 8 lanes, 16, 32, a block, a block in rounds.
PIECES = (7, 13, 29, 60, 125, 150, 1600)
# The dtypes of student, class means and teacher that kernels are compiled for together.
TOGETHER = [
    (dtype, means, dtype)
    for dtype in (torch.float32, *HALVES)
    for means in dict.fromkeys((torch.float32, dtype))
]
for half in HALVES:  # as under autocast
    TOGETHER += [(half, torch.float32, torch.float32), (torch.float32, torch.float32, half)]
BAD_LABELS = {
    torch.int64: (4, -1, 2**40, -(2**63)),
    torch.int32: (4, -1, 2**31 - 1, -(2**31)),
    torch.uint8: (4, 5, 128, 254),
}


@dataclass(frozen=True)
class Call:
    """Arguments of `cases.draw`, and what is done with the case.

    Attributes:
        drawn: keyword arguments of `cases.draw`, but for K, which is 4.
        offset: how many elements behind an allocation's begin every tensor of rows begins.
        bad_labels: of which dtype the labels are, some of them out of range.
        counts: how many rows each class has, the others ignored; by default labels are drawn.
    """

    drawn: dict[str, Any]
    offset: int = 0
    bad_labels: torch.dtype | None = None
    counts: Sequence[int] = ()


def calls() -> Iterator[Call]:
    """Every option by both functions, each in another shape and dtype; then what is special."""
    # Their lengths, 16, 5, 3 and 7, have no common factor: everything meets everything.
    turns = zip(
        itertools.cycle(SHAPES),
        itertools.cycle((*DTYPES, torch.float32)),
        itertools.cycle((torch.float32, torch.bfloat16, None)),
        itertools.cycle((0, 0, 1, 0, 3, 0, 0)),
        strict=True,
    )
    for attached in (False, True):
        for option in every_option():
            (N, D), dtype, means, offset = next(turns)
            drawn = {"N": N, "D": D, "dtype": dtype, "means_dtype": means or dtype}
            yield Call(drawn | option | {"attached": attached}, offset)
    targets = ("indices", "mix by row")
    # Four dtypes and three of labels have no common factor either.
    labels = itertools.cycle(BAD_LABELS)
    for attached, target, D, dtype in itertools.product(
        (False, True), targets, (3, 512, 4096), DTYPES
    ):
        drawn = {"N": 8, "D": D, "dtype": dtype, "target": target, "attached": attached}
        yield Call(drawn, bad_labels=next(labels))
    for dtype, D in itertools.product(DTYPES, (16_384, 20_001)):
        yield Call({"N": 2, "D": D, "dtype": dtype, "attached": True}, offset=1)
    # The kernels for rows in pieces are one for each of these.
    for (dtype, means, teacher), pieces, target in itertools.product(TOGETHER, PIECES, targets):
        drawn = {"N": 5, "D": pieces * 16 // dtype.itemsize, "dtype": dtype, "target": target}
        yield Call(drawn | {"means_dtype": means, "teacher_dtype": teacher, "attached": False})
    # Most rows in one class; a class without rows; ignored rows.
    for dtype, target in itertools.product(DTYPES, targets):
        drawn = {"N": 1500, "D": 40, "dtype": dtype, "target": target, "attached": False}
        yield Call(drawn, counts=(3, 0, 1100, 300))


def make(call: Call, backend: str, device: str) -> None:
    """Draws, calls, and looks whether the losses are numbers, or NaN where a label is bad."""
    case = draw(K=4, **call.drawn)
    if call.bad_labels is not None:
        case = dataclasses.replace(case, target=with_bad_labels(case.target, call.bad_labels))
    if call.counts:
        case = with_rows_of_class(case, call.counts, case.options["ignore_index"])
    if device == "cuda":
        case = to_gpu(case)
    if call.offset:
        names = ("student", "teacher", "class_means", "grad_features")
        given = {name: getattr(case, name) for name in names if getattr(case, name) is not None}
        moved = {name: shifted(tensor, call.offset) for name, tensor in given.items()}
        case = dataclasses.replace(case, **moved)
    results = case.run(backend)
    arguments = (case.student, case.teacher, case.class_means, case.target)
    ndfast.nd_loss(*arguments, **case.options, return_stats=True, backend=backend)
    for found in (results["loss"], results["student"], student_gradient(case, backend)):
        assert found.isnan().any().item() == (call.bad_labels is not None), call


def with_bad_labels(target: Tensor | ndfast.Mix, dtype: torch.dtype) -> Tensor | ndfast.Mix:
    """Labels of ``dtype`` of which the first are no class; of mixed ones the second's last too."""
    bad = torch.tensor(BAD_LABELS[dtype], dtype=dtype)
    if isinstance(target, ndfast.Mix):
        others = torch.cat([target.target_b[: -len(bad)].to(dtype), bad])
        return dataclasses.replace(
            target, target_a=with_bad_labels(target.target_a, dtype), target_b=others
        )
    return torch.cat([bad, target[len(bad) :].to(dtype)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda", help="of ndfast (default: %(default)s)")
    backend = parser.parse_args().backend
    torch.manual_seed(0)
    all_calls = list(calls())
    for call in all_calls:
        make(call, backend, "cuda")
    print(f"{len(all_calls)} calls on {backend}")


if __name__ == "__main__":
    main()
