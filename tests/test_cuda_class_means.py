"""The CUDA kernels' gradient of class means that rows share, however the labels are spread.

A class of 512 rows or more is cut in parts of 256, the last with the rest; another is one block's.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import assert_as_defined, draw
from gpu_backends import check_class_means_beside_bad_labels
from spreads import SPREADS, with_rows_of_class

from ndfast.backends import cuda

pytestmark = pytest.mark.usefixtures("cuda_code")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PART = 256


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(
    ("dtype", "D"), [*((dtype, 40) for dtype in FLOATS), (torch.float32, 37)], ids=str
)
def test_every_spread(spread: str, dtype: torch.dtype, D: int, seed: int) -> None:
    counts, ignored = SPREADS[spread]
    for ignore_index in (-100, 100_000):
        case = draw(sum(counts) + ignored, D, len(counts), dtype, attached=True)
        case = with_rows_of_class(case, counts, ignore_index)
        assert_as_defined(case, "cuda", (spread, ignore_index))


@pytest.mark.parametrize("spread", ["all in one class", "cut ones side by side"])
@pytest.mark.parametrize("D", [6, 264])
def test_mixed_labels(spread: str, D: int, seed: int) -> None:
    counts, _ = SPREADS[spread]
    for dtype in FLOATS:
        case = draw(sum(counts), D, len(counts), dtype, target="mix by row")
        case = with_rows_of_class(case, counts, -100)
        assert_as_defined(case, "cuda", (spread, dtype))


def test_the_bits_are_the_same_in_every_run(seed: int) -> None:
    counts, _ = SPREADS["cut ones side by side"]
    case = with_rows_of_class(draw(sum(counts), 40, len(counts), torch.float32), counts, -100)
    first = case.run("cuda")["class_means"]
    assert torch.equal(case.run("cuda")["class_means"], first)
    order = torch.randperm(len(case.target))
    moved = {"student": case.student[order], "teacher": case.teacher[order]}
    other = dataclasses.replace(case, **moved, target=case.target[order])
    assert not torch.equal(other.run("cuda")["class_means"], first), "the order of rows is seen"


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("D", [20, 21])
def test_many_labels_out_of_range(D: int, mixed: bool, seed: int) -> None:
    check_class_means_beside_bad_labels(cuda, D, mixed)


def test_more_parts_than_one_round_adds(seed: int) -> None:
    for dtype in (torch.float32, torch.float64):
        case = with_rows_of_class(draw(9000, 32, 2, dtype), [30, 8970], -100)
        assert_as_defined(case, "cuda", dtype)


@pytest.mark.parametrize("spread", SPREADS)
def test_a_block_for_every_part(spread: str, seed: int) -> None:
    counts, ignored = SPREADS[spread]
    case = draw(sum(counts) + ignored, 300, len(counts), torch.float32)  # three stretches
    case = with_rows_of_class(case, counts, -100)
    take_launched = torch.ops.ndfast_emulator.take_launched
    take_launched()
    case.run("cuda")
    at_work = [
        (kernel, int(line.split()[1]))
        for line in take_launched().splitlines()
        for kernel in ("class_means_kernel", "add_parts_kernel")
        if kernel in line
    ]
    blocks = 3 * sum(max(rows // PART, 1) for rows in counts)
    expected = [("class_means_kernel", blocks)]
    if len(case.target) >= 2 * PART:  # a class can be cut
        expected += [("add_parts_kernel", 3 * sum(rows >= 2 * PART for rows in counts))]
    assert at_work == expected


@pytest.mark.parametrize("begin", [0, 1, 255, 256, 1000])
@pytest.mark.parametrize("rows", [0, 1, 255, 256, 511, 512, 513, 767, 768, 32_767, 32_768])
def test_parts_have_a_block_s_rows(begin: int, rows: int) -> None:
    end = begin + rows
    parts = torch.ops.ndfast_emulator.parts_of_class(begin, end).tolist()
    assert [part for part, _, _ in parts] == list(
        range(begin // PART, begin // PART + max(rows // PART, 1))
    )
    firsts, ends = [first for _, first, _ in parts], [end for _, _, end in parts]
    assert firsts == [begin, *ends[:-1]]
    assert ends[-1] == end
    assert all(end - first == PART for _, first, end in parts[:-1])
    assert ends[-1] - firsts[-1] < 2 * PART
    # The next class's first part is none of these.
    assert rows < 2 * PART or end // PART > parts[-1][0]


@pytest.mark.parametrize(("blocks", "fits"), [(2**31 - 1, True), (2**31, False), (2**40, False)])
def test_more_blocks_than_a_launch_can_have_are_refused(blocks: int, fits: bool) -> None:
    if fits:
        assert torch.ops.ndfast_emulator.grid_of(blocks) == blocks
        return
    message = rf"class_means: .* {blocks} blocks' work, and one launch has up to 2\^31 - 1"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.ndfast_emulator.grid_of(blocks)
