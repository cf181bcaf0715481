"""Training on a GPU: nothing waits for it, and factors of the loss reach the gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from on_gpu import WAYS, Inputs, draw_inputs, nothing_may_wait, step
from torch import Tensor, nn

import ndfast

pytestmark = pytest.mark.gpu


def total_loss(x: Inputs, way: str, backend: str) -> Tensor:
    """The loss, for the attached way with one of a classifier."""
    arguments = (x.student, x.teacher, x.class_means, x.target)
    if way != "attached":
        return ndfast.nd_loss(*arguments, backend=backend)
    features, loss = ndfast.attach_nd_loss(*arguments, backend=backend)
    return loss + features.float().sum()


def scaled(x: Inputs, way: str, backend: str) -> None:
    """Backward from a loss that GradScaler multiplied: the factor is a tensor on the device."""
    (total_loss(x, way, backend) * x.upstream).backward()


def accumulated(x: Inputs, way: str, backend: str) -> None:
    for _ in range(2):
        (
            ndfast.nd_loss(x.student, x.teacher, x.class_means, x.target, backend=backend) / 2
        ).backward()


def with_stats(x: Inputs, way: str, backend: str) -> None:
    arguments = (x.student, x.teacher, x.class_means, x.target)
    ndfast.nd_loss(*arguments, return_stats=True, backend=backend)[0].backward()


CALLS = [step, scaled, accumulated, with_stats]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits(way: str, call: Callable[..., object], backend: str) -> None:
    x = draw_inputs(way, upstream=2.0)
    for _ in range(2):
        call(x, way, backend)  # compiles, loads and allocates
    with nothing_may_wait():
        call(x, way, backend)


def test_waiting_is_seen() -> None:
    x = draw_inputs("fused")
    with pytest.raises(RuntimeError, match="synchroniz"), nothing_may_wait():
        x.upstream.item()
    with pytest.raises(AssertionError, match="the host waited"), nothing_may_wait():
        torch.cuda.synchronize()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factor", [2.0**16, 8.0])
def test_factors_of_the_loss_reach_the_gradient(
    factor: float, way: str, backend: str, seed: int
) -> None:
    x = draw_inputs(way, N=64, D=256, upstream=factor)
    _, gradient = step(x, way, backend)
    exact = x.student.detach().double().requires_grad_()
    means, teacher = x.class_means.double(), x.teacher.double()
    loss = ndfast.nd_loss(exact, teacher, means, x.target, backend="reference")
    (factor * loss).backward()
    expected = exact.grad + x.grad_features if way == "attached" else exact.grad
    error = ((gradient - expected).norm(dim=1) / expected.norm(dim=1)).max()
    assert error < (1e-3 if way == "deferred" else 1e-5), f"seed {seed}"


@pytest.mark.parametrize("attached", [False, True])
def test_grad_scaler_end_to_end(attached: bool, backend: str, seed: int) -> None:
    projector = nn.Linear(64, 128, device="cuda")
    images = torch.randn(256, 64, device="cuda")
    teacher, class_means = torch.randn(256, 128, device="cuda"), torch.randn(5, 128, device="cuda")
    labels = torch.randint(5, (256,), device="cuda")
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)

    def loss_of(images: Tensor, backend: str, attached: bool = False) -> Tensor:
        features = projector(images)
        others = (teacher.to(features.dtype), class_means, labels)
        if not attached:
            ce = features.float().square().mean()
            return ndfast.nd_loss(features, *others, weight=0.5, backend=backend) + ce
        features, loss = ndfast.attach_nd_loss(features, *others, weight=0.5, backend=backend)
        return loss + features.float().square().mean()

    exact = torch.autograd.grad(loss_of(images, "reference"), list(projector.parameters()))
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_of(images, backend, attached)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for parameter, expected in zip(projector.parameters(), exact, strict=True):
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error < 1e-2, f"seed {seed}"  # float16's 5e-4, over some matrix products
    scaler.step(optimizer)
    scaler.update()

    before = [parameter.detach().clone() for parameter in projector.parameters()]
    optimizer.zero_grad()
    images[3, 5] = torch.inf
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_of(images, backend, attached)
    scaler.scale(loss).backward()
    scaler.step(optimizer)  # skipped: a gradient is not finite
    scaler.update()
    assert scaler.get_scale() == 2.0**13
    for parameter, same in zip(projector.parameters(), before, strict=True):
        assert torch.equal(parameter, same), f"seed {seed}"
