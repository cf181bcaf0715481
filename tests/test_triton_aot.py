"""The machine code of the Triton kernels, compiled ahead of time: no GPU is needed.

A row is read and written in 16-byte pieces, all loads are on their way before the first shuffle
waits for one, nothing is spilled, and an option that is not used leaves no instruction behind.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the Triton backend needs triton")

import triton
from made_up_gpu import output_of

pytestmark = pytest.mark.long  # a hundred compilations

# What ptxas makes of a kernel differs from release to release of Triton, which brings its own.
by_compiler = pytest.mark.skipif(
    not triton.__version__.startswith("3.9."), reason="the bounds are those of Triton 3.9"
)

Call = tuple[int, dict[str, Any]]

# At most this many registers for the warps of a streaming multiprocessor that the launch table
# counts on, 16 for long rows, 24 for short ones: 65,536 registers / (32 · warps), in steps of 8.
FOR_16_WARPS, FOR_24_WARPS = 128, 80

# (kernel, D, dtype): the most registers, on each GPU that it is compiled for.
REGISTERS = {
    ("forward", 64, "float32"): 56,
    ("forward", 512, "float32"): FOR_16_WARPS,
    ("forward", 512, "bfloat16"): FOR_16_WARPS,
    ("forward", 1000, "float32"): 72,
    ("forward", 1000, "bfloat16"): FOR_16_WARPS,
    ("forward", 2048, "float32"): 64,
    ("forward", 2048, "bfloat16"): FOR_24_WARPS,
    ("forward", 4096, "float32"): 72,
    ("forward", 4096, "bfloat16"): FOR_24_WARPS,
    ("scalars", 64, "float16"): 56,
    ("scalars", 512, "float16"): FOR_16_WARPS,
    ("scalars", 1000, "float16"): FOR_16_WARPS,
    ("scalars", 2048, "float16"): 64,
    ("scalars", 4096, "float16"): 64,
    ("student", 512, "float16"): 64,
    ("student", 1000, "float16"): 64,
    ("student", 4096, "float16"): 40,
    ("backward", 1000, "float32"): 56,
    ("backward", 1000, "bfloat16"): 64,
    ("backward", 1000, "float16"): 64,
    ("attached", 512, "bfloat16"): 64,
    ("attached", 1000, "float32"): 40,
    ("attached", 1000, "bfloat16"): 72,
    ("attached", 1000, "float16"): 72,
    ("attached", 4096, "bfloat16"): 48,
    ("finish", 1000, "float32"): 40,
    ("finish", 1000, "bfloat16"): 64,
}
CAPABILITIES = (80, 90, 100)
ONE_DTYPE = [
    (capability, {"kernel": kernel, "D": D, "dtype": dtype, "means_dtype": dtype})
    for kernel, D, dtype in REGISTERS
    for capability in CAPABILITIES
]

PLAIN = {
    "kernel": "forward", "D": 1024, "dtype": "float32", "teacher": "absent",
    "target": "a centre a row", "reduction": 0, "gradient": False,
}  # fmt: skip
# What an option adds to PLAIN, in instructions of PTX: loads, stores. A row of 1024 float32 on two
# warps is four 16-byte pieces a thread.
OPTIONS: list[tuple[dict[str, Any], int, int]] = [
    ({"teacher": "norms"}, 1, 0),
    ({"teacher": "features"}, 4, 0),
    ({"target": "indices"}, 1, 0),
    ({"target": "mix"}, 2 + 4, 0),
    ({"target": "mix", "lam_by_row": True}, 2 + 4 + 1, 0),
    ({"weighted": True}, 1, 0),
    ({"num_coefficients": 2}, 0, 2),
    ({"num_coefficients": 4}, 0, 4),
    ({"num_coefficients": 8}, 0, 8),
    ({"gradient": True}, 0, 4),
]
ATTACHED = {"D": 1024, "dtype": "float32", "teacher": "absent"}
LONG_ROW = (90, {"kernel": "forward", "D": 16_384, "dtype": "bfloat16"})
MISALIGNED = (90, {"kernel": "forward", "D": 1000, "dtype": "float32", "offset": 1})
ODD = (90, {"kernel": "forward", "D": 513, "dtype": "float32"})
WIDE_MEANS = (90, {"kernel": "forward", "D": 2048, "dtype": "bfloat16"})
CLASS_MEANS = (90, {"kernel": "class means", "D": 1000, "dtype": "float32"})
DOUBLE = (90, {"kernel": "forward", "D": 512, "dtype": "float64", "means_dtype": "float64"})
PLAIN_CALL = (90, PLAIN)

ALL = [
    *ONE_DTYPE,
    *((90, {**PLAIN, **option}) for option, _, _ in OPTIONS),
    *((90, {**ATTACHED, "kernel": kernel}) for kernel in ("student", "attached")),
    LONG_ROW, MISALIGNED, ODD, WIDE_MEANS, CLASS_MEANS, DOUBLE,
    PLAIN_CALL,
]  # fmt: skip


def name(call: Call) -> str:
    capability, arguments = call
    return f"sm_{capability}-" + "-".join(str(value) for value in arguments.values())


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """What aot_compile.py read, by the call's name."""
    return dict(zip(map(name, ALL), output_of("aot_compile.py", ALL), strict=True))


@by_compiler
@pytest.mark.parametrize("call", [*ONE_DTYPE, LONG_ROW, MISALIGNED, ODD, WIDE_MEANS, CLASS_MEANS,
                                  DOUBLE], ids=name)  # fmt: skip
def test_nothing_is_spilled(call: Call, found: dict[str, Any]) -> None:
    code = found[name(call)]
    assert (code["stack"], code["local"]) == (0, 0)


@by_compiler
@pytest.mark.parametrize("call", ONE_DTYPE, ids=name)
def test_registers_are_within_their_bound(call: Call, found: dict[str, Any]) -> None:
    _, arguments = call
    bound = REGISTERS[arguments["kernel"], arguments["D"], arguments["dtype"]]
    assert found[name(call)]["registers"] <= bound


@pytest.mark.parametrize("call", ONE_DTYPE, ids=name)
def test_rows_move_in_16_byte_pieces(call: Call, found: dict[str, Any]) -> None:
    # The launch table gives a thread four pieces of each row; two where a warp has no more, and
    # where a row of half precision is more than one warp's.
    tensors_read, tensors_written = {
        "forward": (3, 1), "scalars": (3, 0), "backward": (3, 2), "student": (2, 1),
        "attached": (3, 1), "finish": (2, 1),
    }[call[1]["kernel"]]  # fmt: skip
    code = found[name(call)]
    row_bytes = call[1]["D"] * getattr(torch, call[1]["dtype"]).itemsize
    is_long_half = call[1]["dtype"] != "float32" and row_bytes > 2048
    pieces = 2 if row_bytes <= 1024 or is_long_half else 4
    assert code["wide_loads"] == pieces * tensors_read
    assert code["wide_stores"] == pieces * tensors_written


def test_float32_means_are_four_pieces_where_a_bfloat16_row_is_two(found: dict[str, Any]) -> None:
    code = found[name(WIDE_MEANS)]
    assert (code["wide_loads"], code["wide_stores"]) == (2 + 2 + 4, 2)


def test_a_misaligned_student_is_read_in_narrow_pieces(found: dict[str, Any]) -> None:
    code = found[name(MISALIGNED)]
    assert (code["wide_loads"], code["wide_stores"]) == (4 + 4, 4)
    assert found[name(ODD)]["wide_loads"] == 0


# Of narrower rows several share a thread, and one may be summed before the last is asked for.
SUMMED = [
    call
    for call in ONE_DTYPE
    if call[1]["kernel"] in ("forward", "scalars") and call[1]["D"] >= 512
]


@by_compiler
@pytest.mark.parametrize("call", SUMMED, ids=name)
def test_all_loads_of_a_row_come_before_the_first_shuffle(
    call: Call, found: dict[str, Any]
) -> None:
    assert found[name(call)]["wide_loads_after_shuffle"] == 0


@by_compiler
@pytest.mark.parametrize("call", ONE_DTYPE, ids=name)
def test_all_loads_of_a_row_come_before_the_first_store(call: Call, found: dict[str, Any]) -> None:
    assert found[name(call)]["wide_loads_after_store"] == 0


def test_a_gradient_of_the_features_costs_what_it_moves(found: dict[str, Any]) -> None:
    plain, attached = (
        found[name((90, {**ATTACHED, "kernel": kernel}))] for kernel in ("student", "attached")
    )
    assert attached["loads"] - plain["loads"] == 4
    assert attached["stores"] == plain["stores"]


@by_compiler
@pytest.mark.parametrize(("option", "loads", "stores"), OPTIONS, ids=str)
def test_an_option_costs_what_it_moves(
    option: dict[str, Any], loads: int, stores: int, found: dict[str, Any]
) -> None:
    plain, with_option = found[name(PLAIN_CALL)], found[name((90, {**PLAIN, **option}))]
    assert with_option["loads"] - plain["loads"] == loads
    assert with_option["stores"] - plain["stores"] == stores


def test_without_options_only_student_and_centres_are_read(found: dict[str, Any]) -> None:
    plain = found[name(PLAIN_CALL)]
    assert plain["loads"] == 4 + 4
    assert plain["stores"] == 1 + 1  # the rows' losses, and scale
    assert plain["atomics"] == 0


def test_products_and_sums_are_not_fused(found: dict[str, Any]) -> None:
    # Fused, the norms of equal rows could differ, and a tie would not go to the student.
    assert all(code["fused"] == 0 for code in found.values())


def test_a_reduced_loss_takes_one_ticket(found: dict[str, Any]) -> None:
    for call in ONE_DTYPE:
        takes_one = call[1]["kernel"] in ("forward", "scalars")
        assert found[name(call)]["atomics"] == takes_one, call
