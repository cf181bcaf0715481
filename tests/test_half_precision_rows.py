"""Every float16 and bfloat16 number as the native backend reads it, and how it rounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import ndfast
from tests.cases import draw

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_number_is_read_as_it_is(capability: str, dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[
        numbers.isfinite() & (numbers.float().abs() < 1e18)
    ]  # their squares are finite
    student = torch.zeros(len(numbers), 2, dtype=dtype)
    student[:, 0] = numbers
    centres = torch.tensor([0.0, 1.0]).repeat(len(numbers), 1).requires_grad_()
    norms = torch.full((len(numbers),), 2.0**60)
    loss = ndfast.nd_loss(student, norms, centres, None, reduction="sum", backend="native")
    loss.backward()
    # <s, c> = 0, so ∂c = -s/m, exactly: m is a power of two
    assert torch.equal(centres.grad[:, 0], -numbers.float() / 2.0**60)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_round_to_nearest_even(capability: str, dtype: torch.dtype, seed: int) -> None:
    # From below the smallest subnormal to beyond float16's largest number; ties among them.
    m = torch.cat([2 ** torch.empty(20_000).uniform_(-17.5, 26), 2.0 ** torch.arange(-16, 26)])
    halfway = 1 / (1 + torch.arange(1, 64, 2) * 2.0 ** (-11 if dtype == torch.float16 else -8))
    m = torch.cat([m, halfway])
    student = torch.zeros(len(m), 3, dtype=dtype, requires_grad=True)
    centres = torch.tensor([1.0, 0.0, 0.0]).repeat(len(m), 1)
    ndfast.nd_loss(student, m, centres, None, reduction="sum", backend="native").backward()
    assert torch.equal(student.grad[:, 0], (-1 / m).to(dtype))  # s = 0, so ∂s = -c/m


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_nan_and_inf_are_read_and_written(capability: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [-math.inf, 1.0], [1.0, 0.0]])
    student = student.to(dtype).requires_grad_()
    loss = ndfast.nd_loss(student, None, torch.ones(4, 2), None, reduction="none", backend="native")
    loss.sum().backward()
    assert loss.isnan().tolist() == [True, True, True, False]
    assert student.grad.isnan().all(dim=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_nan_of_all_ones_stays_nan_where_it_is_rounded(
    capability: str, dtype: torch.dtype
) -> None:
    # Rounded as a number is, its bits would carry over into the sign: -0
    student = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    all_ones = torch.full((1, 2), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    ndfast.nd_loss(student, None, all_ones, None, backend="native").backward()
    assert student.grad.isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_class_means_give_the_bits_of_their_float32_copies(
    capability: str, dtype: torch.dtype, seed: int
) -> None:
    past_the_caches = 17 * 2**20 // (513 * dtype.itemsize)  # rows; gradients beside the next row
    for N, D, option in [
        *((5, D, {"ignoring": True, "weighted": True}) for D in (1, 17, 31, 33, 1000, 9000)),
        (5, 1000, {"target": "mix by row", "teacher": "norms"}),
        (5, 1000, {"target": "a centre a row", "teacher": "absent"}),
        (5, 1000, {"attached": True}),
        (past_the_caches, 513, {"ignoring": True}),
        (past_the_caches, 513, {"target": "mix"}),
    ]:
        case = draw(N, D, 4, dtype, means_dtype=dtype, **option)
        case = replace(case, upstream=torch.ones(()))
        widened = replace(case, class_means=case.class_means.float()).run("native")
        for name, value in case.run("native").items():
            assert torch.equal(
                value, widened[name].to(dtype if name != "loss" else torch.float32)
            ), f"{name} of {N} x {D} {option}"
