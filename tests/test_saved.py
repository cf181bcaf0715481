"""What the loss keeps for backward, and for how long, in every way to the op."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from both_losses import definition, losses
from cases import compiles_anew
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import ndfast
from ndfast.backends import reference

N, D, K = 6, 8, 5


class Watched(Tensor):
    """A tensor subclass, as quantised and distributed tensors are."""


def in_a_mode(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(student: Tensor, *arguments: Any) -> Tensor:
        with FlopCounterMode(display=False):
            return function(student, *arguments)

    return call


def of_a_subclass(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda student, *arguments: function(student.as_subclass(Watched), *arguments)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


WAYS = {"eager": lambda f: f, "mode": in_a_mode, "subclass": of_a_subclass, "compiled": compiled}
ways = pytest.mark.parametrize("way", WAYS)


def gradient(way: str, function: Callable[..., Tensor], student: Tensor, *rest: Any) -> Tensor:
    """Of function(student, *rest), by backward in one of the `WAYS`."""
    leaf = student.detach().clone().requires_grad_()
    WAYS[way](function)(leaf, *rest).backward()
    assert leaf.grad is not None
    return leaf.grad.as_subclass(Tensor)


@pytest.fixture
def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(N, D), torch.randn(N, D), torch.randn(K, D), torch.randint(0, K, (N,))


@pytest.fixture
def no_gc() -> Iterator[None]:
    """What is freed is freed by its last reference, not by the collector of cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@losses
@ways
@pytest.mark.parametrize("kind", ["features", "norms"])
@compiles_anew
def test_a_constant_may_come_from_inference_mode(
    kind: str, way: str, loss: Callable[..., Tensor], inputs: tuple
) -> None:
    student, teacher, class_means, labels = inputs
    with torch.inference_mode():
        given = teacher.clone() if kind == "features" else teacher.norm(dim=1)
        weights = torch.rand(N)

    def step(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        return loss(student, teacher, class_means, labels, sample_weight=weights)

    expected = definition(student, teacher, class_means, labels, weights)
    torch.testing.assert_close(gradient(way, step, student, given, weights), expected)
    torch.testing.assert_close(torch.func.grad(step)(student, given, weights), expected)


@losses
@compiles_anew
def test_a_teacher_computed_inside_of_the_compiled_step(
    loss: Callable[..., Tensor], inputs: tuple
) -> None:
    student, images, class_means, labels = inputs
    network = torch.randn(D, D)
    expected = definition(student, images @ network, class_means, labels, torch.ones(N))
    for no_graph in (torch.no_grad, torch.inference_mode):

        def step(student: Tensor, images: Tensor, no_graph: Any = no_graph) -> Tensor:
            with no_graph():
                teacher = images @ network
            return loss(student, teacher, class_means, labels)

        torch.testing.assert_close(gradient("compiled", step, student, images), expected)


@losses
@ways
@pytest.mark.parametrize("trailing", [(), (2, 3)])
def test_the_teacher_is_freed_after_forward(
    trailing: tuple, way: str, loss: Callable[..., Tensor], no_gc: None, seed: int
) -> None:
    student = torch.randn(N, D, *trailing, requires_grad=True)
    labels, class_means = torch.randint(0, K, (N, *trailing)), torch.randn(K, D)
    teacher = torch.randn(N, D, *trailing)
    dead = weakref.ref(teacher)
    value = WAYS[way](loss)(student, teacher, class_means, labels)
    del teacher
    assert dead() is None
    value.backward()
    assert student.grad is not None


@losses
@pytest.mark.parametrize(
    "needed", [("student",), ("teacher",), ("class_means",), ("student", "teacher")]
)
@pytest.mark.parametrize("way", ["eager", "mode", "subclass"])
def test_what_is_saved(
    way: str, needed: tuple[str, ...], loss: Callable[..., Tensor], inputs: tuple
) -> None:
    names = dict(zip(("student", "teacher", "class_means", "labels"), inputs, strict=True))
    names["teacher"] = names["teacher"] * 4  # else its gradient may be 0
    weights = torch.rand(N)
    for name in needed:
        names[name].requires_grad_()
    expected = {"labels", "student", "class_means"} if needed != ("teacher",) else set()
    expected |= {"teacher"} & set(needed)
    by_address = {x.data_ptr(): name for name, x in names.items()} | {weights.data_ptr(): "weights"}
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        value = WAYS[way](lambda *x: loss(*x, sample_weight=weights))(*names.values())
    kept = {by_address[x.data_ptr()] for x in saved if x.data_ptr() in by_address}
    assert kept == expected
    rest = [x for x in saved if x.data_ptr() not in by_address and x.numel() > 1]
    assert all(x.shape in ((1 + 2 * N,), (1 + 4 * N,)) for x in rest)  # scale and coefficients
    value.backward()
    for name in needed:
        assert names[name].grad.count_nonzero() > 0


@losses
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_teachers_gradient_alone(loss: Callable[..., Tensor], backend: str, seed: int) -> None:
    # Of a student and class means that are not kept, in all pairs of types.
    for types in product((torch.float32, torch.float64, torch.bfloat16), repeat=2):
        student, teacher = (torch.randn(N, D).to(dtype) for dtype in types)
        class_means, labels = torch.randn(K, D), torch.randint(0, K, (N,))
        labels[1] = -100
        leaf = (4 * teacher).requires_grad_()
        loss(student, leaf, class_means, labels, backend=backend).backward()
        exact = (4 * teacher.double()).requires_grad_()
        ndfast.nd_loss(
            student.double(), exact, class_means.double(), labels, backend="reference"
        ).backward()
        rtol = 2e-2 if torch.bfloat16 in types else 1e-5
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=rtol, atol=rtol / 10)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for x in value for tensor in tensors_in(x)]
    return [value] if isinstance(value, Tensor) else []


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("factor", [1, 3])
def test_a_loss_that_is_kept_holds_nothing_after_backward(
    factor: int, dtype: torch.dtype, loss: Callable[..., Tensor], inputs: tuple, no_gc: None
) -> None:
    s, teacher, class_means, labels = inputs
    hidden = s.to(dtype).requires_grad_() * 1
    features = weakref.ref(hidden)
    value = loss(hidden, teacher.to(dtype), class_means, labels)
    node = value.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    (factor * value).backward()
    assert not tensors_in(list(vars(node).values()))
    with pytest.raises(RuntimeError, match="second time"):
        _ = node.saved_tensors
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
    del hidden
    assert features() is None


@losses
def test_a_loss_that_is_dropped_frees_what_it_held(
    loss: Callable[..., Tensor], inputs: tuple, no_gc: None
) -> None:
    s, teacher, class_means, labels = inputs
    student = s.clone().requires_grad_()
    held = weakref.ref(student)
    value = loss(student, teacher, class_means, labels)
    del student
    assert held() is not None
    del value
    assert held() is None


@losses
def test_statistics_hold_nothing(loss: Callable[..., Any], inputs: tuple, no_gc: None) -> None:
    s, teacher, class_means, labels = inputs
    call = ndfast.nd_loss if loss is ndfast.nd_loss else ndfast.attach_nd_loss
    student = s.clone().requires_grad_()
    held = weakref.ref(student)
    *_, stats = call(student, teacher, class_means, labels, return_stats=True)
    assert not any(x.requires_grad for x in stats)
    del student, _
    assert held() is None


@losses
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_keeps_no_finished_gradient(
    reentrant: bool,
    loss: Callable[..., Tensor],
    inputs: tuple,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, teacher, class_means, labels = inputs
    finished: list[bool] = []
    forward = reference.forward
    monkeypatch.setattr(
        reference, "forward", lambda *x: finished.append(x[-1]) or forward(*x)
    )  # fmt: skip
    leaf = student.clone().requires_grad_()
    value = checkpoint(
        lambda s: loss(2 * s, teacher, class_means, labels, backend="reference"),
        leaf,
        use_reentrant=reentrant,
    )
    assert finished == [False]
    value.backward()
    expected = definition(2 * student, teacher, class_means, labels, torch.ones(N))
    torch.testing.assert_close(leaf.grad, 2 * expected)


@losses
def test_saved_tensors_may_be_moved_away(loss: Callable[..., Tensor], inputs: tuple) -> None:
    student, teacher, class_means, labels = inputs
    expected = definition(student, teacher, class_means, labels, torch.ones(N))
    leaf = student.clone().requires_grad_()
    with saved_tensors_hooks(lambda x: x.numpy().copy(), torch.from_numpy):
        value = loss(leaf, teacher, class_means, labels)
    for _ in range(2):
        leaf.grad = None
        value.backward(retain_graph=True)
        torch.testing.assert_close(leaf.grad, expected)


@losses
def test_the_compiled_forward_hands_on_no_teacher(
    loss: Callable[..., Tensor], inputs: tuple
) -> None:
    torch._dynamo.reset()
    student, teacher, class_means, labels = inputs
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    @torch.compile(fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    def step(student: Tensor, teacher: Tensor) -> Tensor:
        return loss(student, 2 * teacher, class_means, labels)

    step(student.clone().requires_grad_(), teacher).backward()
    _, backward = graphs
    of_rows = [
        node.name
        for node in backward.graph.find_nodes(op="placeholder")
        if tuple(node.meta["val"].shape) == (N, D) and "tangent" not in node.name
    ]
    assert len(of_rows) == 1, of_rows  # the student
