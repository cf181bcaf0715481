"""Every option of nd_loss in every backend on the CPU, against the definition in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import assert_as_defined, draw, every_option, needs_native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_reference_in_float32_in_every_option(seed: int) -> None:
    for option in every_option():
        assert_as_defined(draw(9, 37, 4, torch.float32, **option), "reference", option)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_in_every_option(dtype: torch.dtype, seed: int) -> None:
    for option in every_option():
        assert_as_defined(draw(9, 37, 4, dtype, **option), "native", option)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_on_every_instruction_set(capability: str, dtype: torch.dtype, seed: int) -> None:
    for D in (1, 2, 15, 16, 17, 31, 33, 64, 65, 127, 1000, 16_384):
        for means_dtype in {torch.float32, dtype}:
            for option in (
                {},
                {"target": "mix by row", "ignoring": True, "weighted": True, "teacher": "absent"},
                {"target": "a centre a row", "reduction": "none", "teacher": "norms"},
            ):
                case = draw(3, D, 2, dtype, means_dtype=means_dtype, **option)
                assert_as_defined(case, "native", (D, means_dtype, option))


@needs_native
def test_rows_spread_over_threads_give_the_same_bits(seed: int) -> None:
    case = draw(700, 129, 20, torch.float32, target="mix by row", weighted=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = case.run("native")
        torch.set_num_threads(4)
        together = case.run("native")
    finally:
        torch.set_num_threads(threads)
    for name, value in alone.items():
        assert torch.equal(value, together[name]), name


@needs_native
@pytest.mark.long
def test_outputs_past_the_cache_are_streamed_and_right(capability: str, seed: int) -> None:
    # 17 MiB each; for an upstream gradient of 1 forward writes it, else backward.
    for N, D, dtype, upstream in [
        (2176, 2048, torch.float32, 1.0),
        (2176, 2047, torch.float32, 1.0),  # rows begin and end anywhere in a vector register
        (2176, 2047, torch.float32, 2.0),
        (4352, 2047, torch.bfloat16, 1.0),
        (4352, 2047, torch.float16, 1.0),  # backward's always
        (495_000, 9, torch.float32, 1.0),  # rows that may end before the first whole register
    ]:
        case = replace(draw(N, D, 10, dtype), upstream=torch.tensor(upstream))
        assert_as_defined(case, "native", f"{N} x {D} {dtype} {upstream}")


@needs_native
def test_a_gradient_is_written_beside_the_next_row_and_right(capability: str, seed: int) -> None:
    # 17 MiB; a centre that is converted or mixed lies in a scratch row until then.
    for dtype, option in [
        (torch.float32, {"target": "mix by row", "ignoring": True}),
        (torch.bfloat16, {"target": "mix", "means_dtype": torch.bfloat16}),
        (torch.float32, {"means_dtype": torch.bfloat16, "ignoring": True, "weighted": True}),
        (torch.float64, {"teacher": "norms", "ignoring": True}),
        (torch.float32, {"target": "a centre a row", "teacher": "absent"}),
    ]:
        case = draw(17 * 2**20 // (513 * dtype.itemsize), 513, 10, dtype, **option)
        case = replace(case, upstream=torch.ones(()))
        assert_as_defined(case, "native", f"{dtype} {option}")
