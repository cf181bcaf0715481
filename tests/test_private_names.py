"""Names that PyTorch does not promise: without any of them the loss and its gradients are the same.

torch itself needs them, so they are away only while a copy of the module that looks them up is
loaded; the loss then runs with what that copy has in their place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from both_losses import losses
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from ndfast import autograd, private, transforms
from ndfast.backends import native

# By what ndfast.private calls it; where torch has it.
PREDICATES: dict[str, tuple[Any, str]] = {
    "is_transforming": (torch._C, "_are_functorch_transforms_active"),
    "is_tracing": (torch._C, "_is_tracing"),
    "is_batched": (torch._C._functorch, "is_legacy_batchedtensor"),
    "num_dispatch_modes": (torch._C, "_len_torch_dispatch_stack"),
    "hooks_on_saved_tensors": (torch._C._autograd, "_top_saved_tensors_default_hooks"),
}
OF_FUNCTORCH = ("TransformType", "get_interpreter_stack", "get_unwrapped", "maybe_get_level")


def copy_without(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: Any) -> ModuleType:
    """What the module comes to where PyTorch lacks some names, (where, which) each."""
    own_name = f"copy_of_{module.__name__.rpartition('.')[2]}"
    spec = spec_from_file_location(own_name, str(module.__file__))
    assert spec is not None
    assert spec.loader is not None
    copy = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, own_name, copy)  # torch.compile looks it up
    with monkeypatch.context() as patch:
        for where, name in names:
            patch.delattr(where, name)
        spec.loader.exec_module(copy)
    return copy


def take_away(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """One of `WHAT`, or all, until the test's end."""
    for name, place in PREDICATES.items():
        if what in (name, "all"):
            without = getattr(copy_without(monkeypatch, private, place), name)
            assert without is not getattr(private, name)
            monkeypatch.setattr(autograd, f"_{name}", without)
    if what in ("functorch", "all"):
        places = [(torch._C._functorch, name) for name in OF_FUNCTORCH]
        copy = copy_without(monkeypatch, transforms, *places)
        assert transforms.CAN_ASK
        assert not copy.CAN_ASK
        monkeypatch.setattr(transforms, "refuse_transforms", copy.refuse_transforms)
        monkeypatch.setattr(transforms, "refuse_tangents", copy.refuse_tangents)
    if what in ("tangents", "all"):
        assert not private.may_have_tangents()
        with monkeypatch.context() as patch:
            patch.delattr(forward_ad, "_current_level")
            assert private.may_have_tangents()
        monkeypatch.setattr(autograd, "_may_have_tangents", lambda: True)
    if what in ("apply", "all"):
        functions = autograd._NDLoss, autograd._AttachedNDLoss
        with monkeypatch.context() as patch:
            patch.setattr(private, "super", lambda *_: None, raising=False)
            applies = [*map(private.apply_of, functions)]
        assert applies == [function.apply for function in functions]
        for name, apply in zip(("_apply_eagerly", "_attach_eagerly"), applies, strict=True):
            assert getattr(autograd, name) != apply
            monkeypatch.setattr(autograd, name, apply)
    if what in ("op", "all") and native.missing is None:
        op = torch.ops.ndfast_native.forward.default
        assert native._forward is op._op
        without = SimpleNamespace()
        assert private.without_frame(without) is without
        monkeypatch.setattr(native, "_forward", op)


WHAT = (*PREDICATES, "functorch", "tangents", "apply", "op", "all")


@losses
@pytest.mark.parametrize(("backend", "each"), [("native", WHAT), ("reference", ("all",))])
def test_loss_and_gradients_are_the_same(
    backend: str,
    each: tuple[str, ...],
    loss: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    inputs = torch.randn(6, 33), torch.randn(6, 33), torch.randn(4, 33)
    labels = torch.randint(0, 4, (6,))

    def value(*inputs: Tensor, **options: Any) -> Tensor:
        return 3 * loss(*inputs, labels, backend=backend, **options)

    def found() -> list[Tensor]:
        """Eager, measured, in a dispatch mode, under torch.func, compiled, saved by hooks."""
        leaves = [each.clone().requires_grad_() for each in inputs]
        total = value(*leaves)
        total.backward(retain_graph=True)
        total.backward()  # made anew from what is kept
        batched = torch.autograd.grad(
            value(*leaves), leaves[0], torch.arange(1.0, 4), is_grads_batched=True
        )
        with torch.autograd.graph.save_on_cpu():
            kept = torch.autograd.grad(value(*leaves), leaves)
        of_func = torch.func.grad(value, argnums=(0, 1, 2))(*inputs)
        students = torch.stack([inputs[0], inputs[1]])
        vmapped = torch.vmap(value, in_dims=(0, None, None))(students, *inputs[1:])
        compiled = torch.compile(value, backend="aot_eager", fullgraph=True)(*leaves)
        of_compiled = torch.autograd.grad(compiled, leaves)
        graph = make_fx(value)(*inputs)
        traced = torch.jit.trace(value, inputs, check_trace=False)
        # The op, not what the backend makes of it or a Function that no other process has.
        assert "nd_loss_forward" in graph.code
        assert "nd_loss_forward" in str(traced.inlined_graph)
        with torch.no_grad():
            alone = value(*inputs)
        return [
            total.detach(), *(leaf.grad for leaf in leaves), *batched, *kept, *of_func, vmapped,
            compiled.detach(), *of_compiled, graph(*inputs), traced(*inputs), alone,
        ]  # fmt: skip

    expected = found()
    for what in each:
        with monkeypatch.context() as patch:
            take_away(patch, what)
            torch._dynamo.reset()
            for got, wanted in zip(found(), expected, strict=True):
                torch.testing.assert_close(got, wanted, msg=partial("no {}: {}".format, what))


@losses
@pytest.mark.parametrize("what", WHAT)
def test_what_has_no_derivative_is_still_an_error(
    what: str, loss: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    take_away(monkeypatch, what)
    student = torch.randn(6, 33, requires_grad=True)
    means, labels = torch.randn(4, 33), torch.randint(0, 4, (6,))
    value = loss(student, None, means, labels)
    for upstream, options in (
        (None, {}),
        (torch.arange(1.0, 4), {"is_grads_batched": True}),
    ):
        (gradient,) = torch.autograd.grad(
            value, student, upstream, create_graph=True, retain_graph=True, **options
        )
        with pytest.raises(RuntimeError, match="double backward"):
            gradient.sum().backward(retain_graph=True)
    values = (student.detach(),)
    with pytest.raises((NotImplementedError, RuntimeError)):  # in the loss's words or PyTorch's
        torch.func.jvp(lambda student: loss(student, None, means, labels), values, values)


@pytest.mark.parametrize("is_there", [True, False])
def test_rows_are_added_by_their_labels(
    is_there: bool, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    if not is_there:
        monkeypatch.delattr(torch, "_index_put_impl_")
    sums, rows = torch.randn(5, 3), torch.randn(40, 3)
    labels = torch.randint(5, (40,))
    expected = sums.double().index_add(0, labels, rows.double())
    private.add_by_sorted_labels(sums, labels, rows)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
