"""Many calls on the CPU: the same bits each time, for any number of threads, and no memory kept."""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import Case, draw, every_option, needs_native

pytestmark = needs_native
CALLS = 50_000
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class MallInfo2(ctypes.Structure):
    """What glibc's malloc says of itself; see mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def blocks_and_bytes() -> tuple[int, int]:
    """Python's memory blocks, and the bytes of C and C++ (tensors too), that are in use."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo2
    gc.collect()
    info = mallinfo2()
    return sys.getallocatedblocks(), info.uordblks + info.hblkhd


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or later")
def test_fifty_thousand_calls_keep_no_memory(seed: int) -> None:
    cases = [
        draw(3, 17, 4, dtype, **options, attached=attached)
        for options, dtype, attached in zip(
            every_option(), itertools.cycle(DTYPES), itertools.cycle([True, False, False])
        )
    ]

    def calls(number: int) -> None:
        for case in itertools.islice(itertools.cycle(cases), number):
            case.run("native")

    calls(10_000)  # fills the interpreter's caches
    blocks, size = blocks_and_bytes()
    calls(CALLS)
    blocks_after, size_after = blocks_and_bytes()
    # Not 0: caches of the interpreter and of malloc's. One object a hundred calls would be 500.
    assert blocks_after - blocks < CALLS // 100
    assert size_after - size < 16 * CALLS // 100


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_on_any_number_of_threads(
    dtype: torch.dtype, threads: None, seed: int
) -> None:
    # Of many rows a class, and wide enough to be shared out.
    for target, teacher in (("indices", "features"), ("mix by row", "norms")):
        case = draw(700, 515, 3, dtype, teacher, target, weighted=True, attached=True)
        for one in (case, replace(case, grad_features=None)):
            assert_the_same_bits(one)


def assert_the_same_bits(case: Case) -> None:
    torch.set_num_threads(1)
    first = case.run("native")
    for num_threads in (1, 1, 2, 2, 3, 8):
        torch.set_num_threads(num_threads)
        for name, result in case.run("native").items():
            assert torch.equal(result, first[name]), f"{name}, {num_threads} threads"
