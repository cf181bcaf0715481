"""The upstream gradient that a GPU's losses learn to expect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from on_gpu import Inputs, capture, copy_inputs, draw_inputs, nothing_may_wait, step
from torch import Tensor

from ndfast import upstream
from ndfast.backends.reference import MEAN

pytestmark = pytest.mark.gpu

SCALE = 2.0**16
WAYS = ("fused", "deferred")


def gradient_of(x: Inputs, way: str, backend: str) -> Tensor:
    return step(x, way, backend)[1].clone()


def have_same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def learn(x: Inputs, way: str, backend: str) -> None:
    for _ in range(3):
        step(x, way, backend)
        torch.cuda.synchronize()  # the copy has arrived
    assert upstream.of(x.student).for_forward(x.student, MEAN) == x.upstream.item()


@pytest.mark.parametrize("D", [512, 1000, 12_304])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_learned_and_changes_no_bit(way: str, D: int, backend: str, seed: int) -> None:
    x = draw_inputs(way, D=D, upstream=SCALE)
    x.class_means[:, ::3] = 0  # zeros of either sign come of these
    as_ever = gradient_of(x, way, backend)
    learn(x, way, backend)
    assert have_same_bits(gradient_of(x, way, backend), as_ever), f"seed {seed}"
    for other in (replace(x, upstream=x.upstream / 2), replace(x, upstream=x.upstream * 0 + 1)):
        upstream.of(x.student).expected = SCALE
        surprised = gradient_of(other, way, backend)
        upstream.of(x.student).forget()
        assert have_same_bits(gradient_of(other, way, backend), surprised), f"seed {seed}"


@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits_for_what_it_is(way: str, backend: str) -> None:
    x = draw_inputs(way, upstream=SCALE)
    for _ in range(3):
        step(x, way, backend)
        torch.cuda.synchronize()
    with nothing_may_wait():
        for _ in range(70):
            step(x, way, backend)


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_is_right_whatever_is_expected(
    way: str, backend: str, written_for: list[float | None], seed: int
) -> None:
    static = draw_inputs(way, upstream=SCALE)
    learn(static, way, backend)
    written_for.clear()
    graph, (_, gradient) = capture(lambda: step(static, way, backend))
    assert written_for == [SCALE, SCALE if way == "fused" else None]  # before it, and captured
    for factor in (SCALE, 1.0, 3.0):
        fresh = draw_inputs(way, upstream=factor)
        upstream.of(fresh.student).forget()
        expected = gradient_of(fresh, way, backend)
        copy_inputs(fresh, to=static)
        graph.replay()
        assert have_same_bits(gradient, expected), f"seed {seed}, upstream {factor}"
