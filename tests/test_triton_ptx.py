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
# Of several rows a program, of one, of one in rounds, and of no whole pieces of 16 bytes.
WIDTHS = (1, 37, 64, 768, 1000, 5000)


def some_calls(seed: int) -> list[tuple[int, dict[str, Any]]]:
    """Every width with every dtype, and a class with rows for several programs."""
    chosen = random.Random(seed)
    options = chosen.sample(list(every_option()), len(DTYPES) * len(WIDTHS))
    calls: list[tuple[int, dict[str, Any]]] = []
    for D in WIDTHS:
        for dtype in DTYPES:
            call = {
                "N": 9, "D": D, "K": 4, "dtype": dtype, "means_dtype": chosen.choice(DTYPES),
                "attached": chosen.random() < 0.5, **options.pop(),
            }  # fmt: skip
            calls.append((chosen.choice((80, 90, 100)), call))
    parts = {"N": 1100, "D": 64, "K": 2, "dtype": chosen.choice(DTYPES)}
    return [*calls, (chosen.choice((80, 90, 100)), parts)]


def test_compiled_kernels_are_as_defined(ptx_machine: Machine, seed: int) -> None:
    given = {"machine": str(ptx_machine.path), "seed": seed, "calls": some_calls(seed)}
    assert output_of("run_triton_ptx.py", given) == [
        "add_parts_backward_kernel", "backward_kernel", "class_means_backward_kernel",
        "forward_kernel",
    ]  # fmt: skip
