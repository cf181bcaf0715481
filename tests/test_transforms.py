"""What transforms functions: torch.func, forward-mode AD, make_fx; and the backend they keep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from both_losses import losses
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


def batches(B: int = 3) -> tuple[Tensor, ...]:
    """Students, teachers, class means and labels of ``B`` batches, one label in each ignored."""
    drawn = [inputs() for _ in range(B)]
    for *_, labels in drawn:
        labels[2] = -100
    return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))


@losses
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_vmap(reduction: str, backend: str, loss: Callable[..., Any], seed: int) -> None:
    batched = batches()

    def value(*arguments: Tensor) -> Tensor:
        return loss(*arguments, reduction=reduction, backend=backend)

    each = torch.stack([value(*one) for one in zip(*batched, strict=True)])
    torch.testing.assert_close(torch.vmap(value)(*batched), each)
    torch.testing.assert_close(torch.vmap(value, chunk_size=2)(*batched), each)
    s, _, c, labels = (x[0] for x in batched)
    # What is not batched is the same for all, and where a batch stands is told.
    got = torch.vmap(value, in_dims=(None, 1, None, None))(s, batched[1].movedim(0, 1), c, labels)
    expected = torch.stack([value(s, teacher, c, labels) for teacher in batched[1]])
    torch.testing.assert_close(got, expected)


@losses
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_vmap_and_under_one(
    backend: str, loss: Callable[..., Any], seed: int
) -> None:
    batched = batches()

    def value(*arguments: Tensor) -> Tensor:
        return loss(*arguments, backend=backend)

    def by_backward(*one: Tensor) -> Tensor:
        leaf = one[0].clone().requires_grad_()
        ndfast.nd_loss(leaf, *one[1:], backend="reference").backward()
        return leaf.grad

    expected = torch.stack([by_backward(*one) for one in zip(*batched, strict=True)])
    torch.testing.assert_close(torch.vmap(torch.func.grad(value))(*batched), expected)
    students, *rest = batched
    of_sum = torch.func.grad(lambda students: torch.vmap(value)(students, *rest).sum())
    torch.testing.assert_close(of_sum(students), expected)
    leaf = students.clone().requires_grad_()
    torch.vmap(value)(leaf, *rest).sum().backward()
    torch.testing.assert_close(leaf.grad, expected)


def test_gradients_of_each_sample(seed: int) -> None:
    s, t, c, labels = inputs()
    network = torch.nn.Linear(33, 33)

    def value(weights: dict[str, Tensor], x: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        features = torch.func.functional_call(network, weights, (x[None],))
        return ndfast.nd_loss(features, teacher[None], c, label[None])

    weights = {name: x.detach() for name, x in network.named_parameters()}
    each = torch.vmap(torch.func.grad(value), in_dims=(None, 0, 0, 0))(weights, s, t, labels)
    for i in range(len(s)):
        network.zero_grad()
        value(dict(network.named_parameters()), s[i], t[i], labels[i]).backward()
        torch.testing.assert_close(each["weight"][i], network.weight.grad)


@losses
def test_jacobian(loss: Callable[..., Any], seed: int) -> None:
    s, t, c, labels = inputs()

    def rows(s: Tensor) -> Tensor:
        return loss(s, t, c, labels, reduction="none")

    exact = torch.autograd.functional.jacobian(
        lambda s: reference.row_loss(s, t.double(), c[labels].double()), s.double()
    ).float()
    torch.testing.assert_close(torch.func.jacrev(rows)(s), exact)
    torch.testing.assert_close(torch.func.jacrev(rows, chunk_size=1)(s), exact)
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(rows, s, vectorize=True), exact
    )  # fmt: skip


@losses
def test_what_is_not_supported_says_so_of_nd_loss(loss: Callable[..., Any], seed: int) -> None:
    s, t, c, labels = inputs()
    one, func, functional = torch.ones(()), torch.func, torch.autograd.functional

    def value(s: Tensor) -> Tensor:
        return loss(s, t, c, labels)

    def of_batch(s: Tensor) -> Tensor:
        return torch.vmap(value)(s[None]).sum()

    calls = {
        "double backward": (
            lambda: func.grad(lambda s: func.grad(value)(s).sum())(s),
            lambda: func.jacrev(func.jacrev(value))(s),
            lambda: func.grad(lambda s: torch.vmap(func.grad(value))(s[None]).sum())(s),
            lambda: functional.hessian(value, s),
            lambda: functional.hessian(value, s, vectorize=True),
            lambda: functional.hvp(value, s, t),
        ),
        "forward-mode AD": (
            lambda: func.jacfwd(value)(s),
            lambda: func.hessian(value)(s),
            lambda: torch.vmap(func.hessian(value))(s[None]),
            lambda: func.jvp(of_batch, (s,), (t,)),
            lambda: func.jvp(func.grad(of_batch), (s,), (t,)),
            lambda: func.jvp(lambda c: func.grad(lambda s: loss(s, t, c, labels))(s), (c,), (c,)),
            lambda: func.jvp(lambda w: func.grad(lambda s: w * value(s))(s), (one,), (one,)),
            lambda: functional.jacobian(value, s, vectorize=True, strategy="forward-mode"),
        ),
        "functionalize": (
            lambda: func.functionalize(value)(s),
            lambda: func.functionalize(func.grad(value))(s),
        ),
    }
    for what, fails in calls.items():
        for call in fails:
            with pytest.raises(RuntimeError, match=f"nd_loss: .*{what}") as raised:
                call()
            text = str(raised.value)
            assert "expected" in text or "leave it out" in text
            assert not any(name in text for name in ("_Transformable", "_DeadEnd", "vmap support"))


def test_a_tangent_of_the_upstream_gradient_raises(seed: int) -> None:
    s, t, c, labels = inputs()
    s.requires_grad_()
    with forward_ad.dual_level():
        factor = forward_ad.make_dual(torch.tensor(2.0), torch.tensor(1.0))
        value = factor * ndfast.nd_loss(s, t, c, labels)
        with pytest.raises(NotImplementedError, match="nd_loss: forward-mode AD"):
            torch.autograd.grad(value, s)


def test_torch_func_inside_of_torch_compile(seed: int) -> None:
    s, t, c, labels = inputs()

    def value(s: Tensor) -> Tensor:
        return ndfast.nd_loss(s, t, c, labels)

    def of_batch(s: Tensor) -> Tensor:
        return torch.vmap(value)(s[None]).sum()

    expected = torch.func.grad(value)(s)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.func.grad(torch.compile(value, backend="eager"))(s), expected)
    # The graph breaks there, and the gradient is that of eager mode.
    compiled = torch.compile(torch.func.grad(value), backend="eager")
    torch.testing.assert_close(compiled(s), expected)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"nd_loss: got a gradient by torch\.func inside of"):
        torch.compile(torch.func.grad(value), backend="eager", fullgraph=True)(s)
    batched = torch.compile(of_batch, backend="eager", fullgraph=True)
    torch.testing.assert_close(batched(s), value(s))


@losses
def test_jit_trace(loss: Callable[..., Any], seed: int) -> None:
    s, t, c, labels = inputs()
    traced = torch.jit.trace(lambda s, t: loss(2 * s, t, c, labels), (s.requires_grad_(), t))
    other, same = (t.clone().requires_grad_() for _ in range(2))
    traced(other, s.detach()).backward()
    ndfast.nd_loss(2 * same, s.detach(), c, labels).backward()
    torch.testing.assert_close(other.grad, same.grad)


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
