"""attach_nd_loss: the gradient of nd_loss plus autograd's own sum, from one kernel."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import assert_as_defined, draw, every_option, needs_native
from torch import Tensor

import ndfast
from ndfast import dispatch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])


def inputs(N: int = 6, D: int = 33, K: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.randint(0, K, (N,))
    return torch.randn(N, D), torch.randn(N, D), torch.randn(K, D), labels


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def summed_by_autograd(
    student: Tensor, grad_features: Tensor, *arguments: Any, **options: Any
) -> Tensor:
    """The student's gradient by nd_loss beside the classifier, in float64."""
    exact = leaf(student.double())
    doubles = (x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
               for x in arguments)  # fmt: skip
    loss = ndfast.nd_loss(exact, *doubles, backend="reference", **options)
    (grad,) = torch.autograd.grad((exact, loss.sum()), exact, (grad_features.double(), None))
    return grad


@pytest.fixture
def backward_calls(backend: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """What each call of the backend's backward gets for grad_features."""
    module: ModuleType = dispatch.choose(torch.device("cpu"), backend)
    calls: list[Tensor | None] = []
    backward = module.backward

    def recorded(*arguments: Any) -> Any:
        calls.append(arguments[9])
        return backward(*arguments)

    monkeypatch.setattr(module, "backward", recorded)
    return calls


def test_reference_in_every_option(seed: int) -> None:
    for option in every_option():
        case = draw(9, 37, 4, torch.float32, attached=True, **option)
        assert_as_defined(case, "reference", (seed, option))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_in_every_option(dtype: torch.dtype, seed: int) -> None:
    for option in every_option():
        assert_as_defined(draw(9, 37, 4, dtype, attached=True, **option), "native", (seed, option))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(capability: str, dtype: torch.dtype, seed: int) -> None:
    for D in (1, 2, 15, 16, 17, 31, 33, 64, 65, 127, 1000):
        for option in ({}, {"target": "mix by row", "ignoring": True, "teacher": "absent"}):
            case = draw(3, D, 2, dtype, attached=True, **option)
            assert_as_defined(case, "native", (seed, D, option))


@needs_native
def test_outputs_past_the_cache(seed: int) -> None:
    for D in (2047, 2048):  # rows that a streamed write may not take, and may
        assert_as_defined(draw(2176, D, 10, torch.float32, attached=True), "native", (seed, D))


def assert_rounded_once(dtype: torch.dtype, backend: str, seed: int) -> None:
    # s = 0 and c = (1, 0): the loss's gradient is -1/m, in float32.
    m = 2 ** torch.empty(20_000).uniform_(-4, 4)
    grad_features = torch.zeros(len(m), 2, dtype=dtype)
    grad_features[:, 0] = torch.randn(len(m)).to(dtype)
    student = torch.zeros(len(m), 2, dtype=dtype, requires_grad=True)
    centres = torch.tensor([1.0, 0.0]).repeat(len(m), 1)
    features, loss = ndfast.attach_nd_loss(
        student, m, centres, None, reduction="sum", backend=backend
    )
    torch.autograd.backward((features, loss), (grad_features, None))
    once = (grad_features[:, 0].float() - 1 / m).to(dtype)
    assert torch.equal(student.grad[:, 0], once), seed
    twice = grad_features[:, 0] + (-1 / m).to(dtype)
    assert not torch.equal(once, twice), "these numbers do not tell the two apart"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_sum_is_rounded_once(dtype: torch.dtype, seed: int) -> None:
    assert_rounded_once(dtype, "reference", seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_sum_is_rounded_once_on_every_instruction_set(
    capability: str, dtype: torch.dtype, seed: int
) -> None:
    assert_rounded_once(dtype, "native", seed)


@both
def test_one_kernel_for_both_gradients(
    backend: str, backward_calls: list[Tensor | None], seed: int
) -> None:
    s, t, c, labels = inputs()
    grad_features = torch.randn(6, 33)
    expected = summed_by_autograd(s, grad_features, t, c, labels)
    student = leaf(s)
    features, loss = ndfast.attach_nd_loss(2 * student / 2, t, c, labels, backend=backend)
    torch.autograd.backward((features, loss), (grad_features, None))
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-5, atol=1e-6)
    assert len(backward_calls) == 1
    assert backward_calls[0] is not None


@both
def test_only_one_of_the_two_is_used(
    backend: str, backward_calls: list[Tensor | None], seed: int
) -> None:
    s, t, c, labels = inputs()
    s[2] = math.nan  # of a loss that is not used nothing may be left, not even 0·NaN
    student = leaf(s)
    features, _ = ndfast.attach_nd_loss(student, t, c, labels, backend=backend)
    upstream = torch.randn(6, 33)
    features.backward(upstream)
    assert torch.equal(student.grad, upstream)
    assert not backward_calls

    s, t, c, labels = inputs()
    student, alone = leaf(s), leaf(s)
    _, loss = ndfast.attach_nd_loss(student, t, c, labels, backend=backend)
    loss.backward()
    assert backward_calls == [None]
    ndfast.nd_loss(alone, t, c, labels, backend=backend).backward()
    torch.testing.assert_close(student.grad, alone.grad, rtol=1e-6, atol=1e-7)


SHAPES = {
    "contiguous": lambda: torch.randn(6, 10),
    "every second": lambda: torch.randn(12, 20)[::2, ::2],
    "transposed": lambda: torch.randn(10, 6).t(),
    "pooled": lambda: torch.randn(6, 10, 1, 1),
    "images": lambda: torch.randn(2, 10, 3, 2),
    "channels last": lambda: torch.randn(2, 10, 3, 2).to(memory_format=torch.channels_last),
    "no row": lambda: torch.randn(0, 10),
    "no image": lambda: torch.randn(0, 10, 3, 2),
}


@both
@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_and_strides(kind: str, backend: str, seed: int) -> None:
    s, class_means = SHAPES[kind](), torch.randn(4, 10)
    rows = s.shape[:1] + (s.shape[2:] if s.shape[2:].numel() > 1 else ())
    labels, teacher = torch.randint(0, 4, rows), torch.randn(s.shape)
    upstreams = {
        "contiguous": torch.randn(s.shape),
        "transposed": torch.randn(*reversed(s.shape)).permute(*reversed(range(s.dim()))),
        "of a sum": torch.tensor(0.7).expand(s.shape),
        "of a sum of rows": torch.randn(s.shape[1:]).expand(s.shape),
    }
    for name, upstream in upstreams.items():
        for student in (leaf(s), s.detach().requires_grad_()):
            before = upstream.clone()
            features, loss = ndfast.attach_nd_loss(
                student, teacher, class_means, labels, backend=backend
            )
            assert features.data_ptr() == student.data_ptr()
            assert (features.shape, features.stride()) == (student.shape, student.stride())
            torch.autograd.backward((features, loss), (upstream, None))
            expected = summed_by_autograd(s, upstream, teacher, class_means, labels)
            torch.testing.assert_close(
                student.grad.double(), expected, rtol=1e-5, atol=1e-6, msg=f"{seed} {name}"
            )
            assert torch.equal(upstream, before), name


@both
def test_rows_of_reduction_none_keep_their_shape(backend: str, seed: int) -> None:
    student, labels = torch.randn(2, 10, 3, 2, requires_grad=True), torch.randint(0, 4, (2, 3, 2))
    arguments = (student, None, torch.randn(4, 10), labels)
    options = {"reduction": "none", "backend": backend}
    _, loss = ndfast.attach_nd_loss(*arguments, **options)
    assert loss.shape == (2, 3, 2)
    torch.testing.assert_close(loss, ndfast.nd_loss(*arguments, **options))


@both
def test_views_and_results_of_layers(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    whole = torch.cat([s, s]).requires_grad_()
    upstream = torch.randn(6, 33)
    features, loss = ndfast.attach_nd_loss(whole[3:9], t, c, labels, backend=backend)
    torch.autograd.backward((features, loss), (upstream, None))
    expected = torch.zeros(12, 33, dtype=torch.float64)
    expected[3:9] = summed_by_autograd(whole[3:9], upstream, t, c, labels)
    torch.testing.assert_close(whole.grad.double(), expected, rtol=1e-5, atol=1e-6)

    # One loss after the other: the second's sum is the first's classifier.
    student = leaf(s)
    features, first = ndfast.attach_nd_loss(student, t, c, labels, backend=backend)
    features, second = ndfast.attach_nd_loss(features, None, c, labels, backend=backend)
    torch.autograd.backward((features, first, second), (upstream, None, None))
    again = summed_by_autograd(s, upstream, None, c, labels)
    expected = summed_by_autograd(s, again, t, c, labels)
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-5, atol=1e-6)


@both
def test_gradients_of_some_inputs_only(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    leaves = [leaf(x) for x in (s, t, c)]
    expected = torch.autograd.grad(ndfast.nd_loss(*leaves, labels, backend=backend), leaves)
    features, loss = ndfast.attach_nd_loss(*leaves, labels, backend=backend)
    total = loss + features.sum()
    for wanted in ((0,), (1,), (2,), (1, 2), (0, 2), (0, 1, 2)):
        grads = torch.autograd.grad(total, [leaves[i] for i in wanted], retain_graph=True)
        for i, grad in zip(wanted, grads, strict=True):
            torch.testing.assert_close(grad, expected[i] + 1 if i == 0 else expected[i])

    # A student that is a constant stays one: no gradient is made for it further down.
    constant, class_means = s.clone(), leaf(c)
    features, loss = ndfast.attach_nd_loss(constant, t, class_means, labels, backend=backend)
    assert features is constant
    loss.backward()
    torch.testing.assert_close(class_means.grad, expected[2])


@both
def test_no_graph_without_gradients(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    student = leaf(s)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            features, loss = ndfast.attach_nd_loss(student, t, c, labels, backend=backend)
            assert features is student
            assert not loss.requires_grad
            assert torch.equal(loss, ndfast.nd_loss(s, t, c, labels, backend=backend))


@both
def test_ignored_rows_get_the_classifiers_gradient_as_it_is(backend: str, seed: int) -> None:
    for dtype in DTYPES:
        s, t, c, labels = inputs()
        s[1], t[4] = math.nan, math.inf
        labels[[1, 4]] = -100
        student = leaf(s.to(dtype))
        features, loss = ndfast.attach_nd_loss(student, t.to(dtype), c, labels, backend=backend)
        upstream = torch.randn(6, 33).to(dtype)
        upstream[4, 3] = math.nan
        torch.autograd.backward((features, loss), (upstream, None))
        assert torch.equal(student.grad[1], upstream[1]), (seed, dtype)
        assert torch.equal(student.grad[4].isnan(), upstream[4].isnan())
        assert torch.equal(student.grad[4].nan_to_num(), upstream[4].nan_to_num())
        others = [0, 2, 3, 5]
        assert student.grad[others].isfinite().all()
        assert (student.grad[others] != upstream[others]).any(dim=1).all()

    student = leaf(torch.randn(3, 33))
    nobody = torch.full((3,), -100)
    features, loss = ndfast.attach_nd_loss(student, None, torch.randn(4, 33), nobody,
                                           backend=backend)  # fmt: skip
    upstream = torch.randn(3, 33)
    torch.autograd.backward((features, loss), (upstream, None))
    assert loss == 0
    assert torch.equal(student.grad, upstream)


@both
def test_nan_stays_in_its_row(backend: str, seed: int) -> None:
    s, t, c, labels = inputs()
    s[2, 7] = t[3, 0] = math.nan
    student = leaf(s)
    features, loss = ndfast.attach_nd_loss(student, t, c, labels, reduction="sum", backend=backend)
    torch.autograd.backward((features, loss), (torch.ones(6, 33), None))
    assert student.grad.isnan().all(dim=1).tolist() == [False, False, True, True, False, False]
    assert student.grad[[0, 1, 4, 5]].isfinite().all()
