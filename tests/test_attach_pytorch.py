"""attach_nd_loss as PyTorch's features meet it: kept graphs, changed tensors, compile, AMP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import compilers, compiles_anew, needs_native
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

import ndfast

both = pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])


def inputs(N: int = 6, D: int = 33, K: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.randint(0, K, (N,))
    return torch.randn(N, D), torch.randn(N, D), torch.randn(K, D), labels


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def separately(student: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """What attach_nd_loss is to equal."""
    return student, ndfast.nd_loss(student, *arguments, **options)


def assert_same_gradients(
    step: Callable[..., Tensor], student: Tensor, class_means: Tensor, classifier: Tensor
) -> None:
    """``step(attach, student, class_means, classifier)`` is the same attached and separately."""
    results = []
    for attach in (ndfast.attach_nd_loss, separately):
        leaves = [leaf(x) for x in (student, class_means, classifier)]
        loss = step(attach, *leaves)
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in leaves)])
    for attached, apart in zip(*results, strict=True):
        torch.testing.assert_close(attached, apart, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_graph_kept_for_a_second_backward(backend: str, dtype: torch.dtype, seed: int) -> None:
    s, t, c, labels = inputs()
    leaves = [leaf(x.to(dtype)) for x in (s, t, c)]
    features, loss = ndfast.attach_nd_loss(*leaves, labels, backend=backend)
    total = features.sum() / 64 + loss
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.zero_()  # what was handed out is the caller's
    (alone,) = torch.autograd.grad(features.sum() / 64, leaves[0], retain_graph=True)
    assert (alone == 1 / 64).all()
    for thrice, once in zip(torch.autograd.grad(3 * total, leaves), kept, strict=True):
        tolerance = 2e-3 if dtype == torch.float16 else 1e-6
        torch.testing.assert_close(thrice, 3 * once, rtol=tolerance, atol=tolerance)


@both
def test_double_backward_is_an_error(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    student = leaf(s)
    features, loss = ndfast.attach_nd_loss(student, t, c, labels, backend=backend)
    for outputs in ((features.square().sum(), loss), (loss,)):
        (grad,) = torch.autograd.grad(outputs, student, create_graph=True)
        penalty = student.square().sum() + grad.square().sum()
        with pytest.raises(RuntimeError, match="double backward"):
            penalty.backward(retain_graph=True)
    # The classifier's own second derivative has nothing to do with the loss.
    (grad,) = torch.autograd.grad(features.pow(3).sum(), student, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), student)
    torch.testing.assert_close(second, 6 * s)


@both
def test_a_student_changed_before_backward_is_an_error(backend: str, seed: int) -> None:
    for shape in ((6, 33), (6, 33, 1, 1)):
        s, t, c, labels = inputs()
        student = leaf(s.view(shape))
        features, loss = ndfast.attach_nd_loss(student, t.view(shape), c, labels, backend=backend)
        total = features.sum() + loss
        with torch.no_grad():
            student.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_features_are_not_changed_in_place(seed: int) -> None:
    s, t, c, labels = inputs()
    features, _ = ndfast.attach_nd_loss(leaf(s), t, c, labels)
    with pytest.raises(RuntimeError, match="is being modified inplace"):
        features.relu_()


@both
@pytest.mark.parametrize("D", [10, 1])
def test_several_upstream_gradients_at_once(D: int, backend: str, seed: int) -> None:
    student, labels = torch.randn(2, D, 3, 2, requires_grad=True), torch.randint(0, 4, (2, 3, 2))
    outputs = ndfast.attach_nd_loss(student, None, torch.randn(4, D), labels, backend=backend)
    upstream = torch.randn(3, 2, D, 3, 2), torch.randn(3)
    (batched,) = torch.autograd.grad(
        outputs, student, upstream, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        one = [x[i] for x in upstream]
        (expected,) = torch.autograd.grad(outputs, student, one, retain_graph=True)
        torch.testing.assert_close(batched[i], expected)


@both
def test_autocast(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()

    def step(attach: Any, student: Tensor, class_means: Tensor, classifier: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = F.linear(student, torch.eye(33))
            features, loss = attach(features, t, class_means, labels, backend=backend)
            assert features.dtype == torch.bfloat16
            assert loss.dtype == torch.float32
            return F.cross_entropy(features @ classifier, labels) + loss

    results = []
    for attach in (ndfast.attach_nd_loss, separately):
        student = leaf(s)
        step(attach, student, c, torch.randn(33, 4, generator=torch.manual_seed(seed))).backward()
        results.append(student.grad)
    # bfloat16 has 8 bits: the gradients are rounded once and three times.
    error = (results[0] - results[1]).norm() / results[1].norm()
    assert error < 2**-7, (seed, error)


@both
def test_grad_scaler_keeps_float16_gradients_from_underflow(backend: str, seed: int) -> None:
    # Unscaled, most of these gradients are below float16's smallest number.
    student, (_, teacher, class_means, labels) = 40 * torch.randn(64, 256), inputs(64, 256)
    grad_features = 1e-6 * torch.randn(64, 256)
    half = leaf(student.half())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    options = {"weight": 1e-3, "backend": backend}
    features, loss = ndfast.attach_nd_loss(half, teacher.half(), class_means, labels, **options)
    total = (features.float() * grad_features).sum() + loss
    scaler.scale(total).backward()
    exact = leaf(half.double())
    loss = ndfast.nd_loss(exact, teacher.half().double(), class_means.double(), labels, **options)
    ((exact * grad_features.double()).sum() + loss).backward()
    error = (half.grad.double() / 2**16 - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-3, (seed, error)


def graphs_of(calls: list[torch.fx.GraphModule]) -> Any:
    """A compiler that keeps what it is given: the forward's graph, then the backward's."""

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(graph)
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


@both
@pytest.mark.parametrize("trailing", [(), (1, 1), (3, 2)])
def test_compiled_it_is_one_kernel_too(trailing: tuple, backend: str, seed: int) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []
    teacher, class_means = torch.randn(6, 33, *trailing), torch.randn(4, 33)
    labels = torch.randint(0, 4, (6, *(d for d in trailing if d > 1)))

    def step(attach: Any, student: Tensor, means: Tensor, classifier: Tensor) -> Tensor:
        features, loss = attach(2 * student, teacher, means, labels, backend=backend)
        logits = features.movedim(1, -1) @ classifier
        return F.cross_entropy(logits.view(-1, 4), labels.view(-1)) + loss

    compiled = torch.compile(step, fullgraph=True, backend=graphs_of(graphs))

    def attached_compiled(attach: Any, *leaves: Tensor) -> Tensor:
        return (step if attach is separately else compiled)(attach, *leaves)

    assert_same_gradients(
        attached_compiled, torch.randn(6, 33, *trailing), class_means, torch.randn(33, 4)
    )
    _, backward = graphs
    called = [node for node in backward.graph.nodes if node.op == "call_function"]
    names = [str(node.target) for node in called]
    assert names.count("ndfast.nd_loss_backward.default") == 1
    assert "aten.add.Tensor" not in names
    kernel = called[names.index("ndfast.nd_loss_backward.default")]
    assert kernel.args[9] is not None  # the classifier's gradient


@both
@compilers
@compiles_anew
def test_compiled_with_dynamic_shapes(compiler: str, backend: str, seed: int) -> None:
    torch._dynamo.reset()

    def step(
        attach: Any, s: Tensor, c: Tensor, classifier: Tensor, t: Tensor, labels: Tensor
    ) -> Tensor:
        features, loss = attach(2 * s, t, c, labels, weight=1.5, backend=backend)
        return F.cross_entropy(features @ classifier, labels) + loss

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=compiler)
    for N in (6, 6, 11, 3):
        s, t, c, labels = inputs(N)

        def attached_compiled(attach: Any, *leaves: Tensor, t=t, labels=labels) -> Tensor:
            return (step if attach is separately else compiled)(attach, *leaves, t, labels)

        assert_same_gradients(attached_compiled, s, c, torch.randn(33, 4))


def test_compiled_only_one_of_the_two_is_used(seed: int) -> None:
    s, t, c, labels = inputs()
    for used in (0, 1):
        torch._dynamo.reset()

        @torch.compile(fullgraph=True, backend="aot_eager")
        def step(student: Tensor, used: int = used) -> Tensor:
            return ndfast.attach_nd_loss(2 * student, t, c, labels)[used]

        student, alone = leaf(s), leaf(s)
        step(student).sum().backward()
        separately(2 * alone, t, c, labels)[used].sum().backward()
        torch.testing.assert_close(student.grad, alone.grad, rtol=1e-5, atol=1e-6)


@both
def test_torch_func(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()

    def step(attach: Any, student: Tensor, class_means: Tensor, classifier: Tensor) -> Tensor:
        features, loss = attach(student, t, class_means, labels, backend=backend)
        return F.cross_entropy(features @ classifier, labels) + loss

    arguments = (s, c, torch.randn(33, 4))
    leaves = [leaf(x) for x in arguments]
    step(separately, *leaves).backward()
    grads = torch.func.grad(step, argnums=(1, 2, 3))(ndfast.attach_nd_loss, *arguments)
    for grad, expected in zip(grads, leaves, strict=True):
        torch.testing.assert_close(grad, expected.grad)


def test_hooks_see_the_classifiers_gradient_and_the_sum(seed: int) -> None:
    s, t, c, labels = inputs()
    seen: list[Tensor] = []
    hidden = 2 * nn.Parameter(s.clone())
    hidden.retain_grad()
    features, loss = ndfast.attach_nd_loss(hidden, t, c, labels)
    features.register_hook(lambda grad: seen.append(grad) or 2 * grad)
    upstream = torch.randn(6, 33)
    torch.autograd.backward((features, loss), (upstream, None))
    assert torch.equal(seen[0], upstream)
    other = leaf(2 * s)
    torch.autograd.backward(separately(other, t, c, labels), (2 * upstream, None))
    torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_a_wrong_argument_is_named_as_nd_loss_names_it(seed: int) -> None:
    s, t, c, labels = inputs()
    with pytest.raises(ValueError, match="class_means: got shape"):
        ndfast.attach_nd_loss(s, t, c[:, 1:], labels)
    with pytest.raises(TypeError, match="student: got list"):
        ndfast.attach_nd_loss([1.0], t, c, labels)
    labels[3] = 4
    with pytest.raises(IndexError, match="class 4 in row 3"):
        ndfast.attach_nd_loss(leaf(s), t, c, labels)
