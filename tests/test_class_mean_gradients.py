"""The gradient of class means that rows share, however the labels are spread, on every backend."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from cases import assert_as_defined, draw, worst_error
from gpu_backends import check_class_means_beside_bad_labels
from spreads import SPREADS, with_rows_of_class

from ndfast.backends import cuda, reference

# Triton's interpreter divides by NumPy, which speaks up.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def counts_for(backend: str, spread: str) -> tuple[list[int], int]:
    """Of SPREADS; a tenth of it for triton, whose kernels know no class.

    They leave a gradient a row, which the reference's code adds up, and are interpreted row by row.
    """
    counts, ignored = SPREADS[spread]
    if backend != "triton":
        return counts, ignored
    return [math.ceil(count / 10) for count in counts], math.ceil(ignored / 10)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("target", ["indices", "mix by row"])
def test_every_spread(spread: str, target: str, backend: str, seed: int) -> None:
    counts, ignored = counts_for(backend, spread)
    for ignore_index in (-100, 100_000) if ignored else (-100,):  # before and behind the classes
        case = draw(sum(counts) + ignored, 40, len(counts), torch.float32, target=target)
        case = with_rows_of_class(case, counts, ignore_index)
        assert_as_defined(case, backend, (seed, ignore_index))


@pytest.mark.usefixtures("cuda_code")
@pytest.mark.parametrize("target", ["indices", "mix by row"])
def test_every_dtype_on_cuda(target: str, seed: int) -> None:
    counts, ignored = SPREADS["ignored ones before and behind"]
    for dtype in FLOATS:
        for D, attached in ((37, True), (264, False)):
            case = draw(
                sum(counts) + ignored, D, len(counts), dtype, target=target, attached=attached,
                means_dtype=torch.bfloat16 if attached else torch.float32,
            )  # fmt: skip
            assert_as_defined(with_rows_of_class(case, counts, -100), "cuda", (seed, dtype, D))


@pytest.mark.parametrize("backend", ["native", "cuda"], indirect=True)  # triton takes a minute
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_4096_rows_of_one_class(dtype: torch.dtype, backend: str, seed: int) -> None:
    # Sums of the rows' unrounded gradients: of rounded ones half precision would be off by more.
    case = draw(4096, 32, 1, dtype, reduction="sum")
    got = case.run(backend)["class_means"]
    exact = case.to(torch.float64).run("reference")["class_means"]
    theirs = case.to(torch.float32).run("reference")["class_means"]
    bound = max(2 * worst_error(theirs, exact, None), 1e-6)
    assert worst_error(got, exact, None) <= bound, seed


def test_the_bits_are_the_same_in_every_run(backend: str, seed: int) -> None:
    counts, _ = counts_for(backend, "classes of all sizes")
    case = with_rows_of_class(draw(sum(counts), 40, len(counts), torch.float32), counts, -100)
    first = case.run(backend)["class_means"]
    assert torch.equal(case.run(backend)["class_means"], first), seed
    order = torch.randperm(len(case.target))
    moved = {"student": case.student[order], "teacher": case.teacher[order]}
    other = dataclasses.replace(case, **moved, target=case.target[order])
    assert not torch.equal(other.run(backend)["class_means"], first), "the order of rows is seen"


@pytest.mark.usefixtures("cuda_code")
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("D", [20, 21])
def test_many_labels_out_of_range_on_cuda(D: int, mixed: bool, seed: int) -> None:
    check_class_means_beside_bad_labels(cuda, D, mixed)


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_adds_rows_up_on_a_gpu(dtype: torch.dtype, seed: int) -> None:
    labels, rows = torch.randint(7, (300,)), torch.randn(300, 5, dtype=dtype)
    found = []
    for kind in (torch.Tensor, OnGpu):
        sums = torch.zeros(7, 5, dtype=dtype).as_subclass(kind)
        reference._add_rows(sums, labels, rows)
        found.append(sums.as_subclass(torch.Tensor))
    expected = torch.nn.functional.one_hot(labels, 7).to(dtype).T @ rows
    for sums in found:
        torch.testing.assert_close(sums, expected)


def test_labels_of_no_class_are_added_to_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of one label a GPU adds one row after the other, and a batch may have most of them ignored.
    added = []
    monkeypatch.setattr(reference, "_add_rows", lambda sums, labels, rows: added.append(labels))
    target = torch.full((1000,), -100)
    target[3] = 1
    reference.add_by_class(torch.zeros(1000, 2), torch.zeros(5, 2), target, None, None, 1.0)
    (labels,) = added
    assert labels[3] == 1
    assert labels.bincount().max() <= 1000 / 50
    assert (labels != 1).sum() == (labels >= 5).sum() == 999
