"""A call for each family of kernels, which `test_gpu_smoke.py` makes on a GPU in about a minute.

A family is a kernel, the dtype that it reads and whether labels are mixed; how a row is spread over
threads, and the class means' dtype, are for test_gpu_options.py.
"""

from __future__ import annotations

from typing import Any

import torch
from cases import Case, draw
from on_gpu import HALVES
from spreads import with_rows_of_class

MIXED = ("indices", "mix by row")
FLOATS = (torch.float32, *HALVES)
IN_REGISTERS, LONG, ODD = 512, 16_384, 37  # a row's features; an odd row goes element by element


def calls() -> dict[str, dict[str, Any]]:
    """Keyword arguments of `draw`, but for K, which is 4; ``counts`` as in `make_case`."""
    found: dict[str, dict[str, Any]] = {}
    for dtype in FLOATS:
        for target in MIXED:
            name = f"{str(dtype).removeprefix('torch.')}, {target}"
            attached = target != "indices"
            given = {"dtype": dtype, "target": target, "attached": attached}
            found[f"rows in registers, {name}"] = {"N": 70, "D": IN_REGISTERS, **given}
            found[f"long rows, {name}"] = {"N": 3, "D": LONG, **given, "attached": not attached}
    for dtype in (torch.float32, torch.float64):
        for target in MIXED:
            name = f"{str(dtype).removeprefix('torch.')}, {target}"
            given = {"D": ODD, "dtype": dtype, "target": target}
            found[f"element by element, {name}"] = {"N": 9, **given}
    half = {"N": 9, "D": IN_REGISTERS, "dtype": torch.bfloat16}
    return found | {
        "probabilities": half | {"target": "probabilities"},
        "a centre a row": half | {"target": "a centre a row", "attached": True},
        "a large class": half | {"N": 1500, "counts": (3, 0, 1100, 300)},
        "no teacher": half | {"teacher": "absent", "reduction": "sum"},
        "a teacher's norms": half | {"teacher": "norms", "reduction": "none", "weighted": True},
        "a teacher of another dtype": half | {"teacher_dtype": torch.float32, "ignoring": True},
    }


CALLS = calls()


def make_case(drawn: dict[str, Any]) -> Case:
    """Draws it; ``counts``, where given: how many rows each class has, the others ignored."""
    counts = drawn.get("counts")
    case = draw(K=4, **{name: value for name, value in drawn.items() if name != "counts"})
    return with_rows_of_class(case, counts, case.options["ignore_index"]) if counts else case
