"""The upstream gradient that forward expects: when, and that it changes no bit of a result."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import needs_native
from torch import Tensor

import ndfast
from ndfast.backends import native, reference
from ndfast.upstream import BY_DTYPE

DTYPES = tuple(BY_DTYPE)
SCALE = 2.0**16  # GradScaler's first

Step = Callable[[float], Tensor]


def expect(dtype: torch.dtype, upstream: float) -> None:
    for _ in range(2):
        BY_DTYPE[dtype].surprises(upstream)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def step(dtype: torch.dtype, backend: str, shape: tuple[int, int, int] = (12, 70, 5)) -> Step:
    """A step of training: the student's gradient for an upstream gradient."""
    N, D, K = shape
    student = torch.randn(N, D).to(dtype).requires_grad_()
    teacher, class_means = torch.randn(N, D).to(dtype), torch.randn(K, D)
    labels = torch.randint(K, (N,))
    labels[0] = -100

    def run(upstream: float) -> Tensor:
        loss = ndfast.nd_loss(student, teacher, class_means, labels, backend=backend)
        (gradient,) = torch.autograd.grad(loss, student, torch.tensor(upstream).to(loss))
        return gradient

    return run


@pytest.fixture
def written_late(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has written a student's gradient after forward."""
    calls: list[str] = []
    for module in (native, reference):
        for name in ("backward", "finish_gradient_"):
            if hasattr(module, name):
                spy = partial(record, calls, name, getattr(module, name))
                monkeypatch.setattr(module, name, spy)
    return calls


def record(calls: list[str], name: str, of: Callable[..., object], *arguments: object) -> object:
    calls.append(name)
    return of(*arguments)


def calls_of(written_late: list[str], run: Step, upstreams: list[float]) -> list[str]:
    """For each step what wrote its gradient: "forward" where nothing did later."""
    by_step = []
    for upstream in upstreams:
        written_late.clear()
        run(upstream)
        by_step.append(written_late[0] if written_late else "forward")
    return by_step


def test_float16_waits_until_a_scale_has_come_twice(backend: str, written_late: list[str]) -> None:
    halved = [SCALE] * 3 + [SCALE / 2] * 3
    assert calls_of(written_late, step(torch.float16, backend), halved) == [
        "backward", "backward", "forward",
        "backward", "backward", "forward",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_others_expect_1_until_another_has_come_twice(
    dtype: torch.dtype, backend: str, written_late: list[str]
) -> None:
    upstreams = [1.0, 4.0, 3.0, 1.0, 4.0, 4.0, 4.0, 1.0, 2.0, 4.0, 1.0, 1.0, 1.0]
    assert calls_of(written_late, step(dtype, backend), upstreams) == [
        "forward", "finish_gradient_", "finish_gradient_", "forward", "finish_gradient_",
        "finish_gradient_", "forward", "backward", "backward", "forward", "backward", "backward",
        "forward",
    ]  # fmt: skip


def test_dtypes_do_not_know_of_each_other(backend: str) -> None:
    expect(torch.float16, SCALE)
    expect(torch.float32, 3.0)
    assert [known.expected for known in BY_DTYPE.values()] == [SCALE, 1.0, 3.0, 1.0]


@pytest.mark.parametrize("upstream", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_expected(
    upstream: float, backend: str, written_late: list[str]
) -> None:
    calls = calls_of(written_late, step(torch.float32, backend), [upstream] * 4)
    assert calls == ["finish_gradient_"] * 4


def rows_past_the_caches(dtype: torch.dtype, D: int) -> int:
    """Whose gradients are streamed, each beside the next row's sums."""
    return 2**24 // (D * dtype.itemsize) + 1


@needs_native
@pytest.mark.parametrize(
    "shape", [(12, 70, 5), (5, 1, 3), (3, 16, 2), (7, 4099, 3), (None, 2049, 30)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_expect_changes_no_bit(
    dtype: torch.dtype, shape: tuple[int | None, int, int], capability: str, seed: int
) -> None:
    N, D, K = shape
    run = step(dtype, "native", (N or rows_past_the_caches(dtype, D), D, K))
    for upstream in (SCALE, 1.0, 0.3, -2.5, 0.0):
        BY_DTYPE[dtype].forget()
        as_ever = run(upstream)
        for foreseen in (upstream, 0.7):
            expect(dtype, foreseen)
            assert torch.equal(run(upstream), as_ever), (upstream, foreseen)


def test_a_loss_of_each_row_is_as_at_first(backend: str, written_late: list[str]) -> None:
    expect(torch.float32, 4.0)
    student = torch.randn(6, 8, requires_grad=True)
    losses = ndfast.nd_loss(
        student, None, torch.randn(6, 8), None, reduction="none", backend=backend
    )
    (ones,) = torch.autograd.grad(losses.sum(), student, retain_graph=True)
    # It leaves rows whose upstream gradient is 1; the reference's calls backward.
    assert written_late[0] == "finish_gradient_"
    (fours,) = torch.autograd.grad(4 * losses.sum(), student)
    torch.testing.assert_close(fours, 4 * ones)
    assert BY_DTYPE[torch.float32].expected == 4.0


def test_a_second_backward_makes_its_own(backend: str) -> None:
    expect(torch.float16, SCALE)
    student = torch.randn(6, 8, dtype=torch.float16, requires_grad=True)
    loss = ndfast.nd_loss(student, None, torch.randn(6, 8), None, backend=backend)
    twice = [
        torch.autograd.grad(loss, student, torch.tensor(SCALE), retain_graph=True)[0]
        for _ in range(2)
    ]
    assert torch.equal(*twice)
    assert twice[0].data_ptr() != twice[1].data_ptr()
