"""What transforms functions: torch.func, forward-mode AD, make_fx; and the backend they keep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import ndfast
from ndfast.backends import native, reference

BACKENDS = ["reference", "native"]


def inputs(N: int = 6, D: int = 33, K: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.randint(0, K, (N,))
    return torch.randn(N, D), torch.randn(N, D), torch.randn(K, D), labels


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_func_grad(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    of_all = torch.func.grad(
        lambda s, t, c: 3 * ndfast.nd_loss(s, t, c, labels, backend=backend), argnums=(0, 1, 2)
    )(s, t, c)
    leaves = [x.clone().requires_grad_() for x in (s, t, c)]
    (3 * ndfast.nd_loss(*leaves, labels, backend="reference")).backward()
    for got, leaf in zip(of_all, leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad)


def test_transforms_that_are_not_supported_raise(seed: int) -> None:
    # Each of these gave a zero or lost a tangent without a word at first.
    torch._dynamo.reset()
    s, t, c, labels = inputs()
    gradient = torch.func.grad(lambda s: ndfast.nd_loss(s, t, c, labels))
    with pytest.raises(Exception, match=r"nd_loss_forward"):
        torch.compile(gradient, backend="eager")(s)


@pytest.mark.parametrize("loss", [ndfast.nd_loss, ndfast.attach_nd_loss])
@pytest.mark.parametrize("trained", [False, True])
def test_forward_mode_raises(trained: bool, loss: Callable[..., Any], seed: int) -> None:
    s, t, c, labels = inputs()
    s.requires_grad_(trained)
    unsupported = pytest.raises(NotImplementedError, match="forward-mode AD")
    with unsupported:
        torch.func.jvp(lambda s: loss(s, t, c, labels), (s.detach(),), (t,))
    with unsupported:
        torch.func.linearize(lambda s: loss(s, t, c, labels), s.detach())
    with forward_ad.dual_level():
        share = forward_ad.make_dual(torch.rand(6), torch.ones(6))
        duals = [forward_ad.make_dual(x.clone(), torch.ones_like(x)) for x in (s, t, c)]
        for call in (
            lambda: loss(duals[0], t, c, labels),
            lambda: loss(s, duals[1], c, labels),
            lambda: loss(s, t, duals[2], labels),
            lambda: loss(s, t, c, labels, sample_weight=share),
            lambda: loss(s, t, c, ndfast.Mix(labels, labels, share)),
        ):
            for watched in (nullcontext(), FlopCounterMode(display=False)):
                with unsupported, watched:
                    call()
        loss(s, t, c, labels)  # nothing of it has a tangent


def test_make_fx_records_the_functional_pair(seed: int) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    s, t, c, labels = inputs()
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(
            lambda s: torch.func.grad(lambda s: ndfast.nd_loss(s, t, c, labels))(s),
            tracing_mode=mode, _allow_non_fake_inputs=True,
        )(s)  # fmt: skip
        called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        assert "ndfast.nd_loss_forward.default" in called
        assert "ndfast.nd_loss_backward.default" in called


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends' functions in the order of their calls."""
    names: list[str] = []

    def spy(module: Any, name: str) -> None:
        function = getattr(module, name)

        def recorded(*arguments: Any) -> Any:
            names.append(f"{module.__name__.rpartition('.')[2]}.{name}")
            return function(*arguments)

        monkeypatch.setattr(module, name, recorded)

    for module in (native, reference):
        spy(module, "forward")
        spy(module, "backward")
    return names


@pytest.mark.parametrize("loss", [ndfast.nd_loss, lambda *x: ndfast.attach_nd_loss(*x)[1]])
@pytest.mark.parametrize("is_inside", [False, True])
def test_use_backend_holds_under_compile_and_in_backward(
    is_inside: bool, loss: Callable[..., Tensor], ran: list[str], seed: int
) -> None:
    torch._dynamo.reset()
    s, t, c, labels = inputs()
    s.requires_grad_()

    def step(s: Tensor) -> Tensor:
        if not is_inside:
            return loss(s, t, c, labels)
        with ndfast.use_backend("reference"):
            return loss(s, t, c, labels)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with nullcontext() if is_inside else ndfast.use_backend("reference"):
        value = compiled(s)
    value.backward()
    assert ran == ["reference.forward", "reference.backward"]
    if not is_inside:
        compiled(s).backward()
        assert ran[2:] == ["native.forward", "native.backward"]


def test_use_backend_holds_in_a_vjp(ran: list[str], seed: int) -> None:
    s, t, c, labels = inputs()
    with ndfast.use_backend("reference"):
        value, vjp = torch.func.vjp(lambda s: ndfast.nd_loss(s, t, c, labels), s)
    vjp(torch.ones_like(value))
    assert ran == ["reference.forward", "reference.backward"]
