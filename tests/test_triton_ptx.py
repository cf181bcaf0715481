"""The Triton kernels as they are compiled for GPUs, their PTX run on the CPU.

test_triton.py has them interpreted, before Triton's compiler; here it has chosen layouts, shared
memory and barriers.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from cases import every_option
from compiled_ptx import Machine

pytest.importorskip("triton", reason="the Triton backend needs triton")

from made_up_gpu import output_of

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Of no whole pieces of 16 bytes, of several rows a program, of one, and of one in rounds.
WIDTHS = (1, 37, 64, 768, 1000, 5000)
GPUS = (80, 90, 100)


def some_calls(seed: int) -> list[tuple[int, dict[str, Any]]]:
    """Every width in two dtypes."""
    chosen = random.Random(seed)
    calls: list[tuple[int, dict[str, Any]]] = []
    for D in WIDTHS:
        for dtype in chosen.sample(DTYPES, 2):
            call = {
                "N": 9, "D": D, "K": 4, "dtype": dtype, "means_dtype": chosen.choice(DTYPES),
                "attached": chosen.random() < 0.5, **chosen.choice(list(every_option())),
            }  # fmt: skip
            calls.append((chosen.choice(GPUS), call))
    return calls


@pytest.mark.long
def test_compiled_kernels_are_as_defined(ptx_machine: Machine, seed: int) -> None:
    given = {"machine": str(ptx_machine.path), "seed": seed, "calls": some_calls(seed)}
    names = output_of("run_triton_ptx.py", {**given, "batches": []})["names"]
    assert names == ["backward_kernel", "forward_kernel"]


@pytest.mark.long
def test_each_way_moves_its_rows_once(ptx_machine: Machine, seed: int) -> None:
    shapes = [(64, "float32"), (256, "bfloat16"), (768, "bfloat16"), (2048, "float32")]
    batches = [
        (gpu, {"N": 40, "D": D, "K": 4, "dtype": dtype})
        for gpu, (D, dtype) in zip((80, 90, 100, 90), shapes, strict=True)
    ]
    given = {"machine": str(ptx_machine.path), "seed": seed, "calls": [], "batches": batches}
    for moved in output_of("run_triton_ptx.py", given)["moved"]:
        assert moved["forward"][:2] == [1, 1]
        assert 1 <= moved["forward"][2] < 1.05  # values of rows, and the programs' sums
        assert moved["finished"] == [0, 0]  # for the upstream gradient that comes
        assert moved["anew"] == [1, 1]
        assert moved["attached"] == [1, 1, 1]
