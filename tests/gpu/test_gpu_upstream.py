"""The upstream gradient that a GPU's losses learn to expect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from on_gpu import Inputs, capture, copy_inputs, draw_inputs, nothing_may_wait, step
from torch import Tensor

from ndfast import upstream

pytestmark = pytest.mark.gpu

SCALE = 2.0**16
WAYS = ("fused", "deferred")


def gradient_of(x: Inputs, way: str, backend: str) -> Tensor:
    return step(x, way, backend)[1].clone()


def learn(x: Inputs, way: str, backend: str) -> None:
    for _ in range(3):
        step(x, way, backend)
        torch.cuda.synchronize()  # the copy has arrived
    assert upstream.expected(x.student, reduction=1) == x.upstream.item()


@pytest.mark.parametrize("way", WAYS)
def test_it_is_learned_and_changes_no_bit(way: str, backend: str, seed: int) -> None:
    x = draw_inputs(way, upstream=SCALE)
    as_ever = gradient_of(x, way, backend)
    learn(x, way, backend)
    assert torch.equal(gradient_of(x, way, backend), as_ever), f"seed {seed}"
    other = replace(x, upstream=x.upstream / 2)
    halved = gradient_of(other, way, backend)
    upstream.of(x.student).forget()
    assert torch.equal(gradient_of(other, way, backend), halved), f"seed {seed}"


@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits_for_what_it_is(way: str, backend: str) -> None:
    x = draw_inputs(way, upstream=SCALE)
    step(x, way, backend)
    with nothing_may_wait():
        for _ in range(70):
            step(x, way, backend)


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_is_right_whatever_is_expected(way: str, backend: str, seed: int) -> None:
    static = draw_inputs(way, upstream=SCALE)
    learn(static, way, backend)
    graph, (_, gradient) = capture(lambda: step(static, way, backend))
    for factor in (SCALE, 1.0, 3.0):
        fresh = draw_inputs(way, upstream=factor)
        upstream.of(fresh.student).forget()
        expected = gradient_of(fresh, way, backend)
        copy_inputs(fresh, to=static)
        graph.replay()
        assert torch.equal(gradient, expected), f"seed {seed}, upstream {factor}"
