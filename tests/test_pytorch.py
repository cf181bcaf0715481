"""What PyTorch expects of an op: opcheck, compile, autocast, torch.func, threads, graphs kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import compilers, compiles_anew, draw, every_option, rows_of
from torch import Tensor, nn

import ndfast
from ndfast import ops

BACKENDS = ["reference", "native"]


def inputs(N: int = 6, D: int = 33, K: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.randint(0, K, (N,))
    return torch.randn(N, D), torch.randn(N, D), torch.randn(K, D), labels


# The others change no shape.
OPTIONS = [
    option
    for option in every_option()
    if option["reduction"] != "sum" and not option["ignoring"]
    if option["weighted"] == (option["reduction"] == "mean")
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.long)])  # it takes a while
def test_opcheck(every: int, requires_grad: bool, backend: str, seed: int) -> None:
    for option in OPTIONS[seed % every :: every]:
        case = draw(4, 5, 3, torch.float32, **option)
        student, teacher, class_means, *rest = rows_of(case)
        needs_teacher = teacher is not None and teacher.dim() == 2
        for x in (student, class_means, *((teacher,) if needs_teacher else ())):
            x.requires_grad_(requires_grad)
        forward = (student, teacher, class_means, *rest, 4, not requires_grad, backend)
        torch.library.opcheck(ops.nd_loss_forward, forward)
        _, saved, _ = ops.nd_loss_forward(*forward)
        constants = [x if x is None else x.detach()
                     for x in (saved, student, teacher, class_means)]  # fmt: skip
        for grad_features in (None, torch.randn(5, 4).t()):
            backward = (
                case.upstream, *constants, *rest[:4], grad_features, True, needs_teacher,
                True, backend,
            )  # fmt: skip
            torch.library.opcheck(ops.nd_loss_backward, backward)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_contiguous_as_the_graph_is_told(backend: str, seed: int) -> None:
    s, t, c, grad_features = (torch.randn(5, 6).t() for _ in range(4))
    inputs = (s, t, c, None, None, None, 1.0)
    forward = (*inputs, None, 1.0, 1, -100, 1e-8, 4, True, backend)
    loss, saved, grad_student = ops.nd_loss_forward(*forward)
    backward = (loss, saved, *inputs, grad_features, True, True, True, backend)
    for gradient in (grad_student, *ops.nd_loss_backward(*backward)):
        assert gradient.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@compilers
@compiles_anew
def test_compile_without_graph_breaks_and_with_dynamic_shapes(
    compiler: str, backend: str, seed: int
) -> None:
    torch._dynamo.reset()

    def training_step(s: Tensor, t: Tensor, c: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return ndfast.nd_loss(2 * s, t, c, labels, weight=1.5, backend=backend, **options)

    compiled = torch.compile(training_step, fullgraph=True, dynamic=True, backend=compiler)
    for N in (6, 6, 11, 3):
        s, t, c, labels = inputs(N)
        results = []
        for step in (training_step, compiled):
            leaves = [x.clone().requires_grad_() for x in (s, t, c)]
            loss = step(*leaves, labels)
            loss.backward()
            results.append([loss.detach(), *(x.grad for x in leaves)])
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-7)


@compilers
@compiles_anew
def test_compile_in_other_options(compiler: str, seed: int) -> None:
    torch._dynamo.reset()
    s, t, c, labels = inputs()
    targets = {
        "indices": labels,
        "mix": ndfast.Mix(labels, labels.flip(0), 0.3),
        "probabilities": torch.rand(6, 4).softmax(1),
    }
    for name, target in targets.items():
        for options in ({"reduction": "none"}, {"sample_weight": torch.rand(6)}):

            def step(s: Tensor, t: Tensor, target=target, options=options) -> Tensor:
                return ndfast.nd_loss(s, t, c, target, **options).sum()

            leaf, same = s.clone().requires_grad_(), s.clone().requires_grad_()
            torch.compile(step, fullgraph=True, backend=compiler)(leaf, t).backward()
            step(same, t).backward()
            torch.testing.assert_close(leaf.grad, same.grad, msg=name, rtol=1e-6, atol=1e-7)


def test_compiled_label_out_of_range_is_an_index_error(seed: int) -> None:
    torch._dynamo.reset()
    s, t, c, labels = inputs()
    labels[3] = 4
    with pytest.raises(IndexError, match="class 4 in row 3"):
        torch.compile(ndfast.nd_loss, fullgraph=True, backend="aot_eager")(s, t, c, labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_arrives_in_every_dtype(backend: str, seed: int) -> None:
    # opcheck passes for an op that silently gives none
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        s, t, c, labels = inputs()
        leaf = s.to(dtype, copy=True).requires_grad_()
        ndfast.nd_loss(leaf, t.to(dtype), c, labels, backend=backend).backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert leaf.grad.count_nonzero() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_graph_kept_for_a_second_backward(backend: str, dtype: torch.dtype, seed: int) -> None:
    s, t, c, labels = inputs()
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in (s, t, c)]
    loss = ndfast.nd_loss(*leaves, labels, backend=backend)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.zero_()  # what was handed out is the caller's
    second = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves)
    for once, thrice, again in zip(kept, second, third, strict=True):
        torch.testing.assert_close(thrice, 3 * once, rtol=2e-3 if dtype == torch.float16 else 1e-6,
                                   atol=1e-6)  # fmt: skip
        torch.testing.assert_close(again, once, rtol=1e-6, atol=1e-7)
    leaf = s.clone().requires_grad_()
    loss = ndfast.nd_loss(leaf, t, c, labels, backend=backend)
    for _ in range(3):  # accumulation adds in place to what the first backward handed out
        loss.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 3 * kept[0].float(), rtol=5e-3, atol=1e-4)


def test_no_grad_and_constants_make_no_graph(seed: int) -> None:
    s, t, c, labels = inputs()
    assert not ndfast.nd_loss(s, t, c, labels).requires_grad
    s.requires_grad_()
    with torch.no_grad():
        assert not ndfast.nd_loss(s, t, c, labels).requires_grad
    with torch.inference_mode():
        assert ndfast.nd_loss(s, t, c, labels).isfinite()
    t = (4 * t).requires_grad_()  # longer than the student's: else there may be no gradient
    c.requires_grad_()
    for needed in (s, t, c):
        loss = ndfast.nd_loss(*(x if x is needed else x.detach() for x in (s, t, c)), labels)
        (grad,) = torch.autograd.grad(loss, needed)
        assert grad.count_nonzero() > 0


def test_gradients_of_other_inputs_do_not_change_the_students(seed: int) -> None:
    s, t, c, labels = inputs()
    results = []
    for others in (False, True):
        leaf = s.clone().requires_grad_()
        rest = [x.clone().requires_grad_(others) for x in (t, c)]
        ndfast.nd_loss(leaf, *rest, labels).backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_backward_is_an_error(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    s.requires_grad_()
    loss = ndfast.nd_loss(s, t, c, labels, backend=backend)
    (grad,) = torch.autograd.grad(loss, s, create_graph=True)
    penalty = s.square().sum() + grad.square().sum()
    with pytest.raises(RuntimeError, match="double backward"):
        penalty.backward()

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: ndfast.nd_loss(x, t, c, labels, backend=backend))(x)

    with pytest.raises(RuntimeError, match="double backward"):
        torch.func.grad(lambda x: gradient(x).sum())(s.detach())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_upstream_gradients_at_once(reduction: str, backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    s.requires_grad_()
    loss = ndfast.nd_loss(s, t, c, labels, reduction=reduction, backend=backend)
    upstream = torch.randn(3, *loss.shape)
    batched = torch.autograd.grad(loss, s, upstream, is_grads_batched=True, retain_graph=True)[0]
    for got, one in zip(batched, upstream, strict=True):
        expected = torch.autograd.grad(loss, s, one, retain_graph=True)[0]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_penalty_on_several_gradients_at_once_raises(
    reduction: str, attached: bool, seed: int
) -> None:
    # They would be constants of it otherwise, which is a wrong number.
    s, t, c, labels = inputs()
    s.requires_grad_()
    call = ndfast.attach_nd_loss if attached else ndfast.nd_loss
    value = call(s, t, c, labels, reduction=reduction)
    value = value[-1] if attached else value
    upstream = torch.ones(3, *value.shape)
    (grads,) = torch.autograd.grad(value, s, upstream, is_grads_batched=True, create_graph=True)
    for grad in grads:
        expected = torch.autograd.grad(value, s, upstream[0], retain_graph=True)[0]
        torch.testing.assert_close(grad, expected)
    with pytest.raises(RuntimeError, match=r"nd_loss: .*double backward"):
        (s.exp().sum() + grads.square().sum()).backward()


def test_autocast_leaves_the_loss_in_float32(seed: int) -> None:
    s, t, c, labels = inputs()
    probabilities = torch.rand(6, 4).softmax(1)
    linear = nn.Linear(33, 33)
    for target in (labels, probabilities):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = linear(s)
            loss = ndfast.nd_loss(features, t, c, target)
        assert features.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        exact = ndfast.nd_loss(features.double(), t.double(), c.double(), target)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
        linear.zero_grad()
        loss.backward()
        assert linear.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_scaler_keeps_float16_gradients_from_underflow(backend: str, seed: int) -> None:
    # Unscaled, most of these gradients are below float16's smallest number.
    student, teacher = 40 * torch.randn(64, 256), torch.randn(64, 256)
    class_means, labels = torch.randn(4, 256), torch.randint(0, 4, (64,))
    leaf = student.half().requires_grad_()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    options = {"weight": 1e-3, "backend": backend}
    loss = ndfast.nd_loss(leaf, teacher.half(), class_means, labels, **options)
    scaler.scale(loss).backward()
    exact = leaf.detach().double().requires_grad_()
    ndfast.nd_loss(
        exact, teacher.half().double(), class_means.double(), labels, **options
    ).backward()
    error = (leaf.grad.double() / 2**16 - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-3
    plain = student.half().requires_grad_()
    ndfast.nd_loss(plain, teacher.half(), class_means, labels, **options).backward()
    assert plain.grad.count_nonzero() < 0.5 * leaf.grad.count_nonzero()


def test_gradient_accumulation_divides(seed: int) -> None:
    s, t, c, labels = inputs()
    for dtype in (torch.float32, torch.bfloat16):
        leaf = s.to(dtype, copy=True).requires_grad_()
        for _ in range(4):
            (ndfast.nd_loss(leaf, t.to(dtype), c, labels) / 4).backward()
        once = s.to(dtype, copy=True).requires_grad_()
        ndfast.nd_loss(once, t.to(dtype), c, labels).backward()
        torch.testing.assert_close(leaf.grad, once.grad)


def test_threads_as_data_parallel_has_them(seed: int) -> None:
    s, t, c, labels = inputs(64)

    def part(rows: slice) -> Tensor:
        leaf = s[rows].clone().requires_grad_()
        loss = ndfast.nd_loss(leaf, t[rows], c, labels[rows], reduction="sum")
        loss.backward()
        return leaf.grad

    rows = [slice(i, i + 8) for i in range(0, 64, 8)]
    with ThreadPoolExecutor(8) as pool:
        grads = torch.cat(list(pool.map(part, rows)))
    torch.testing.assert_close(grads, part(slice(None)))
