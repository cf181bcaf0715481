"""The upstream gradient that forward expects: when, and that it changes no bit of a result."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from cases import needs_native
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import ndfast
from ndfast import dispatch
from ndfast.backends.reference import NONE
from ndfast.upstream import BY_DTYPE

DTYPES = tuple(BY_DTYPE)
SCALE = 2.0**16  # GradScaler's first

Step = Callable[[float], Tensor]

# Triton's interpreter takes no batched tensors.
without_triton = pytest.mark.parametrize("backend", ["reference", "native", "cuda"], indirect=True)


def expect(dtype: torch.dtype, upstream: float) -> None:
    BY_DTYPE[dtype].expected = upstream


def step(
    dtype: torch.dtype,
    backend: str,
    shape: tuple[int, int, int] = (12, 70, 5),
    mixed: bool = False,
) -> Step:
    """A step of training: the student's gradient for an upstream gradient.

    By the sum, for of the mean a GPU's backends would have another scale than 1.
    """
    N, D, K = shape
    student, class_means = torch.randn(N, D).to(dtype), torch.randn(K, D)
    # Zeros of either sign come of these; of a longer teacher, where the student's share is 0, too.
    class_means[:, ::3], student[:, ::2] = 0, 0
    student.requires_grad_()
    teacher = (2 * torch.rand(N, 1).round() * torch.randn(N, D)).to(dtype)
    labels, weights = torch.randint(K, (N,)), torch.rand(N)
    labels[0], weights[2:N:3] = -100, 0
    target = ndfast.Mix(labels, torch.randint(K, (N,)), 0.3) if mixed else labels

    def run(upstream: float) -> Tensor:
        loss = ndfast.nd_loss(
            student, teacher, class_means, target, sample_weight=weights, reduction="sum",
            backend=backend,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, student, torch.tensor(upstream).to(loss))
        return gradient

    return run


@pytest.fixture
def written_late(backend: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has written a student's gradient after forward, or has looked whether to."""
    calls: list[str] = []
    module = dispatch.choose(torch.device("cpu"), backend)
    for name in ("backward", "finish_gradient_"):
        monkeypatch.setattr(module, name, partial(record, calls, name, getattr(module, name)))
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
        "finish_gradient_", "finish_gradient_", "forward",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_others_expect_1_until_another_has_come_twice(
    dtype: torch.dtype, backend: str, written_late: list[str]
) -> None:
    upstreams = [1.0, 4.0, 1.0, 4.0, 3.0, 4.0, 4.0, 4.0, 1.0, 4.0, 1.0, 1.0, 1.0]
    assert calls_of(written_late, step(dtype, backend), upstreams) == [
        "forward", "finish_gradient_", "forward",
        "finish_gradient_", "finish_gradient_", "backward", "backward", "forward",
        "finish_gradient_", "forward", "finish_gradient_", "finish_gradient_", "forward",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_changes_from_step_to_step_waits(
    dtype: torch.dtype, backend: str, written_late: list[str]
) -> None:
    expect(dtype, 2.0)
    calls = calls_of(written_late, step(dtype, backend), [3.0, 4.0, 5.0, 6.0, 6.0, 6.0])
    assert calls == ["finish_gradient_"] * 2 + ["backward"] * 3 + ["forward"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_do_not_know_of_each_other(
    dtype: torch.dtype, backend: str, written_late: list[str]
) -> None:
    calls_of(written_late, step(dtype, backend), [SCALE] * 3)
    assert written_late == []
    for other in {*DTYPES} - {dtype}:
        late = ["backward" if other == torch.float16 else "finish_gradient_"]
        assert calls_of(written_late, step(other, backend), [SCALE]) == late


@pytest.mark.parametrize("upstream", [math.nan, math.inf, -math.inf, 0.0, -0.0])
def test_some_are_never_expected(upstream: float, backend: str, written_late: list[str]) -> None:
    calls = calls_of(written_late, step(torch.float32, backend), [upstream] * 4)
    assert calls == ["finish_gradient_"] * 2 + ["backward"] * 2


def rows_past_the_caches(dtype: torch.dtype, D: int) -> int:
    """Whose gradients are streamed, each beside the next row's sums."""
    return 2**24 // (D * dtype.itemsize) + 1


def check_no_bit_changes(dtype: torch.dtype, run: Step) -> None:
    for upstream in (SCALE, 1.0, 0.3, -2.5, 1e-44, 0.0, -0.0):
        BY_DTYPE[dtype].forget()
        as_ever = run(upstream)
        for foreseen in (upstream or 1.0, 0.7):
            expect(dtype, foreseen)
            got = run(upstream)
            assert torch.equal(got, as_ever), (upstream, foreseen)
            assert torch.equal(got.signbit(), as_ever.signbit()), (upstream, foreseen)


@needs_native
@pytest.mark.parametrize(
    "shape", [(12, 70, 5), (5, 1, 3), (3, 16, 2), (7, 4099, 3), (None, 2049, 30)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_expect_changes_no_bit(
    dtype: torch.dtype, shape: tuple[int | None, int, int], capability: str, seed: int
) -> None:
    N, D, K = shape
    shape = (N or rows_past_the_caches(dtype, D), D, K)
    check_no_bit_changes(dtype, step(dtype, "native", shape))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nor_where_centres_are_mixed_in_turn(dtype: torch.dtype, seed: int) -> None:
    shape = (rows_past_the_caches(dtype, 2049), 2049, 30)
    check_no_bit_changes(dtype, step(dtype, "native", shape, mixed=True))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nor_on_any_backend(dtype: torch.dtype, mixed: bool, backend: str, seed: int) -> None:
    check_no_bit_changes(dtype, step(dtype, backend, mixed=mixed))


# On a part of a warp, a warp, a block, in rounds of a block, and on the plain path.
@pytest.mark.parametrize("D", [16, 256, 4096, 12_304, 37])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nor_by_any_of_the_cuda_kernels(
    dtype: torch.dtype, D: int, cuda_code: str, seed: int
) -> None:
    check_no_bit_changes(dtype, step(dtype, "cuda", (7, D, 3)))


def test_a_loss_of_each_row_is_as_at_first(backend: str, written_late: list[str]) -> None:
    expect(torch.float32, 4.0)
    assert BY_DTYPE[torch.float32].for_forward(torch.randn(6, 8), NONE) == 1.0
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


def test_gradscaler_in_training(backend: str, written_late: list[str], seed: int) -> None:
    embed = torch.nn.Linear(8, 6)
    optimizer = torch.optim.SGD(embed.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    class_means, labels = torch.randn(3, 6), torch.randint(3, (5,))

    def train(scale: float) -> Tensor:
        assert scaler.get_scale() == scale
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            features = embed(torch.randn(5, 8))
            assert features.dtype == torch.float16
            loss = ndfast.nd_loss(features, None, class_means, labels, backend=backend)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    scales = [2.0**10] * 4 + [2.0**11] * 4
    assert calls_of(written_late, train, scales) == [
        "backward", "backward", "forward", "forward",
        "finish_gradient_", "finish_gradient_", "forward", "forward",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_gradients_of_a_mix(dtype: torch.dtype, backend: str, seed: int) -> None:
    inputs = [torch.randn(6, 9).to(dtype), torch.randn(6, 9).to(dtype), torch.randn(4, 9)]
    leaves = [x.requires_grad_() for x in inputs]
    mix = ndfast.Mix(torch.randint(4, (6,)), torch.randint(4, (6,)), 0.3)

    def gradients(upstream: float) -> tuple[Tensor, ...]:
        loss = ndfast.nd_loss(*leaves, mix, backend=backend)
        return torch.autograd.grad(loss, leaves, torch.tensor(upstream).to(loss))

    as_ever = gradients(3.0)
    for foreseen in (3.0, 0.7):
        expect(dtype, foreseen)
        assert all(map(torch.equal, gradients(3.0), as_ever))


@without_triton
def test_several_upstream_gradients_at_once(backend: str, seed: int) -> None:
    expect(torch.float32, 4.0)
    student = torch.randn(6, 8, requires_grad=True)
    loss = ndfast.nd_loss(student, None, torch.randn(6, 8), None, backend=backend)
    upstreams = torch.tensor([4.0, 1.0])
    (several,) = torch.autograd.grad(
        loss, student, upstreams, is_grads_batched=True, retain_graph=True
    )
    (one,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(several, torch.stack([4 * one, one]))


@without_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_backward_that_is_transformed_is_right(
    dtype: torch.dtype, backend: str, seed: int
) -> None:
    student = torch.randn(6, 8).to(dtype).requires_grad_()
    loss = ndfast.nd_loss(student, None, torch.randn(6, 8), None, backend=backend)
    several = torch.func.vmap(
        lambda upstream: torch.autograd.grad(loss, student, upstream, retain_graph=True)[0]
    )(torch.tensor([SCALE, 2 * SCALE]).to(loss))
    assert torch.equal(several[1], 2 * several[0])


@pytest.mark.parametrize("needs", [True, False])
def test_losses_that_cannot_use_it_are_not_learned_from(needs: bool, backend: str) -> None:
    student = torch.randn(6, 8, requires_grad=needs)
    class_means = torch.randn(6, 8, requires_grad=True)
    hooks = saved_tensors_hooks(lambda x: x, lambda x: x)
    for _ in range(2):
        with hooks if needs else nullcontext():
            loss = ndfast.nd_loss(student, None, class_means, None, backend=backend)
        (0.5 * loss).backward()
    assert BY_DTYPE[torch.float32].expected == 1.0
