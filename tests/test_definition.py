"""The definition itself: numbers by hand, autograd, and a loop written from the formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import draw, rows_of
from torch import Tensor

import ndfast
from ndfast.backends import reference

DOUBLE = torch.float64


def tensor(*rows: list[float], grad: bool = True) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE, requires_grad=grad)


# s, t, c -> loss, ∂s, ∂t, ∂c
BY_HAND = {
    # ‖s‖ = 5 leads, p = 4: 1 - 4/5; ∂s = -(0,1)/5 + 4/125·(3,4); ∂c = -(3,4)/10 + 4/20·(0,2)
    "the student is longer": ([3, 4], [0, 1], [0, 2], 0.2, [0.096, -0.072], [0, 0], [-0.3, 0]),
    # ‖t‖ = 10 leads: 1 - 4/10; ∂s = -(0,1)/10; ∂t = 4/1000·(0,10); ∂c = -(3,4)/20 + 4/40·(0,2)
    "the teacher is longer": ([3, 4], [0, 10], [0, 2], 0.6, [0, -0.1], [0, 0.04], [-0.15, 0]),
    # ‖s‖ = ‖t‖ = 5: all of it is the student's
    "a tie": ([3, 4], [5, 0], [0, 2], 0.2, [0.096, -0.072], [0, 0], [-0.3, 0]),
    # m = eps = 1e-8, p = 0: ∂s = -(0,1)·1e8; s and t at 0 have no direction to give
    "zero student and teacher": ([0, 0], [0, 0], [0, 2], 1, [0, -1e8], [0, 0], [0, 0]),
    # n_c = eps: p = 0 and c = 0, so that only ∂c = -(3,4)/(5·1e-8) is left
    "zero class mean": ([3, 4], [0, 1], [0, 0], 1, [0, 0], [0, 0], [-0.6e8, -0.8e8]),
    "zero student": ([0, 0], [3, 4], [0, 2], 1, [0, -0.2], [0, 0], [0, 0]),
}

# The same with eps = 1/2. A norm has a gradient where it is larger than eps, not where it is eps.
BY_HAND_AT_EPS = {
    # m = 1/2 = p: ∂s = -(2,0)/(2·½); ∂c = -(½,0)/(½·2) + ½/(½·4)·(2,0)
    "a student of eps": ([0.5, 0], [0.25, 0], [2, 0], 0, [-2, 0], [0, 0], [0, 0]),
    # m = 1/2, p = 1/4
    "a teacher of eps": ([0.25, 0], [0, 0.5], [2, 0], 0.5, [-2, 0], [0, 0], [0, 0]),
    # m = 2, p = 1/4: ∂t = ¼/(4·2)·(0,2), whatever the student's norm
    "a student below it": ([0.25, 0], [0, 2], [2, 0], 0.875, [-0.5, 0], [0, 0.0625], [0, 0]),
    # p = 2: ∂s = -(½,0)/(½·2) + 2/(4·2)·(2,0); ∂c = -(2,0)/(2·½)
    "a class mean of eps": ([2, 0], [1, 0], [0.5, 0], 0, [0, 0], [0, 0], [-2, 0]),
    # n_c = 1/2, p = 1
    "a class mean below it": ([2, 0], [1, 0], [0.25, 0], 0.5, [0, 0], [0, 0], [-2, 0]),
}
EPS = dict.fromkeys(BY_HAND, 1e-8) | dict.fromkeys(BY_HAND_AT_EPS, 0.5)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("name", "eps"), EPS.items())
def test_by_hand(name: str, eps: float, backend: str) -> None:
    s, t, c, loss, *gradients = (BY_HAND | BY_HAND_AT_EPS)[name]
    inputs = [tensor(row) for row in (s, t, c)]
    result = ndfast.nd_loss(*inputs, torch.tensor([0]), eps=eps, backend=backend)
    result.backward()
    assert result.item() == pytest.approx(loss, rel=1e-12)
    assert reference.row_loss(*inputs, eps).tolist() == pytest.approx([loss], rel=1e-12)
    for x, expected in zip(inputs, gradients, strict=True):
        assert x.grad[0].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", BY_HAND)
def test_autograd_of_the_row_loss_by_hand(name: str) -> None:
    s, t, c, _, *gradients = BY_HAND[name]
    inputs = [tensor(row) for row in (s, t, c)]
    reference.row_loss(*inputs).sum().backward()
    for x, expected in zip(inputs, gradients, strict=True):
        assert x.grad[0].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_zero_norms_and_no_eps(backend: str) -> None:
    # 0/0, and its gradient, not the infinite -c/(n_c·0) of a row that has a direction
    s, t, c = tensor([0, 0]), tensor([0, 0]), tensor([0, 2])
    loss = ndfast.nd_loss(s, t, c, torch.tensor([0]), eps=0.0, backend=backend)
    gradients = torch.autograd.grad(loss, (s, t, c))
    assert all(x.isnan().all() for x in (loss, gradients[0], gradients[2]))


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_smallest_eps(backend: str) -> None:
    zero, centre = torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])
    options = {"eps": 2.0**-126, "backend": backend}
    assert ndfast.nd_loss(zero, None, centre, torch.tensor([0]), **options).item() == 1


def test_reductions_and_weights_by_hand() -> None:
    # Row losses 0.2, 0.6 and, ignored, nothing; see BY_HAND.
    s, t, c = tensor([3, 4], [3, 4], [3, 4]), tensor([0, 1], [0, 10], [0, 1]), tensor([0, 2])
    target, weights = torch.tensor([0, 0, -100]), torch.tensor([1.0, 3.0, 7.0], dtype=DOUBLE)

    def loss(**options: object) -> Tensor:
        return ndfast.nd_loss(s, t, c, target, weight=2.0, **options)

    assert loss().item() == pytest.approx(2 * (0.2 + 0.6) / 2)
    assert loss(sample_weight=weights).item() == pytest.approx(2 * (0.2 + 3 * 0.6) / 4)
    assert loss(reduction="sum").item() == pytest.approx(2 * (0.2 + 0.6))
    assert loss(reduction="none", sample_weight=weights).tolist() == pytest.approx([0.4, 3.6, 0])


def test_mix_and_probabilities_mix_before_they_normalise() -> None:
    s, t = tensor([3, 4]), tensor([0, 1])
    class_means = tensor([4, 0], [0, 4])
    # 0.25·(4,0) + 0.75·(0,4) = (1,3): p = 15/√10, m = 5
    expected = 1 - 15 / math.sqrt(10) / 5
    mix = ndfast.Mix(torch.tensor([0]), torch.tensor([1]), 0.25)
    for target in (mix, tensor([0.25, 0.75], grad=False)):
        assert ndfast.nd_loss(s, t, class_means, target).item() == pytest.approx(expected)


def test_labels_out_of_range_have_a_centre_of_nan() -> None:
    labels, others = torch.tensor([-1, 0, 1, 2]), torch.tensor([0, 0, 0, 0])
    for K in (1, 2):
        class_means = torch.arange(1.0, K + 1)[:, None]
        expected = [math.nan, 1.0, 2.0 if K == 2 else math.nan, math.nan]
        for target_b, lam in ((None, 0.0), (labels, 0.5), (others, 1.0)):
            centres = reference.gather_centres(class_means, labels, target_b, None, lam, DOUBLE)
            assert centres[:, 0].tolist() == pytest.approx(expected, nan_ok=True)


def per_sample_loop(
    student: Tensor, teacher: Tensor, class_means: Tensor, labels: list[int]
) -> Tensor:
    """The formula, a row at a time, with Python's max."""
    total = torch.zeros((), dtype=DOUBLE)
    for s, t, label in zip(student, teacher, labels, strict=True):
        c = class_means[label]
        longest = max(s.norm(), t.norm())
        total = total + 1 - torch.dot(s, c / c.norm()) / longest
    return total / len(labels)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_against_a_loop_written_from_the_formula(backend: str, seed: int) -> None:
    student, teacher = torch.randn(40, 13, dtype=DOUBLE), torch.randn(40, 13, dtype=DOUBLE)
    class_means, labels = torch.randn(5, 13, dtype=DOUBLE), torch.randint(0, 5, (40,))
    results = []
    for loss in (
        lambda s, t, c: per_sample_loop(s, t, c, labels.tolist()),
        lambda s, t, c: ndfast.nd_loss(s, t, c, labels, backend=backend),
    ):
        inputs = [x.clone().requires_grad_() for x in (student, teacher, class_means)]
        value = loss(*inputs)
        value.backward()
        results.append([value.detach(), *(x.grad for x in inputs)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_closed_form_is_the_gradient_of_the_loss(seed: int) -> None:
    inputs = [torch.randn(6, 5, dtype=DOUBLE, requires_grad=True) for _ in range(3)]
    reference.row_loss(*inputs).sum().backward()
    alpha, beta, gamma, delta = reference.row_coefficients(
        reference.row_terms(*(x.detach() for x in inputs), 1e-8), 1e-8
    )[:, :, None]
    s, t, c = inputs
    for gradient, x in (
        (alpha * c + beta * s, s),
        (gamma * t, t),
        (alpha * s + delta * c, c),
    ):
        torch.testing.assert_close(gradient, x.grad, rtol=1e-12, atol=1e-14)


def test_what_is_not_asked_for_is_empty() -> None:
    rows = rows_of(draw(5, 3, 2, torch.float32))
    for num_coefficients, gradient in ((0, False), (2, False), (4, True), (8, False)):
        _, saved, grad = reference.forward(*rows, num_coefficients, gradient)
        assert saved.shape == (1 + num_coefficients * 5,)
        assert saved[0] == 1
        assert grad.shape == ((5, 3) if gradient else (0,))
    arguments = (torch.ones(()), reference.forward(*rows, 4, False)[1], *rows.inputs)
    for needs in itertools.product((False, True), repeat=3):
        gradients = reference.backward(*arguments, None, *needs)
        assert [x.numel() > 0 for x in gradients] == list(needs)


def test_forwards_gradient_is_for_any_upstream_gradient() -> None:
    rows = rows_of(draw(5, 3, 2, DOUBLE, ignoring=True))
    loss, saved, grad = reference.forward(*rows, 2, True)
    again = reference.forward(*rows, 2, True, upstream=-4.0)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], saved)
    assert torch.equal(again[2], -4 * grad)


def test_backward_of_coefficients() -> None:
    student, class_means = torch.ones(3, 2), torch.full((1, 2), torch.nan)
    class_means[0, 1] = 10
    saved = torch.tensor([0.5, *[0.0, 0.0, 1.0], *[0.0, 2.0, 0.0]])  # scale, alpha and beta
    rows = (student, None, class_means, torch.tensor([0, 0, 0]), None, None, 0.0)
    grad_loss, added = torch.tensor(3.0), torch.full((3, 2), 7.0)
    for grad_features, more in ((None, 0), (added, 7)):
        options = (grad_features, True, False, False)
        grad, _, _ = reference.backward(grad_loss, saved, *rows, *options)
        assert grad[:, 1].tolist() == [more, 1.5 * 2 + more, 1.5 * 10 + more]
        # Only a row whose alpha and beta are both 0 is ignored, whatever it holds.
        assert grad[:, 0].isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(backend: str, reduction: str, seed: int) -> None:
    s, t = (torch.randn(5, 4, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    c = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    labels, others = torch.tensor([0, 2, -100, 1, 2]), torch.tensor([1, 2, 0, 0, 0])
    weights = torch.rand(5, dtype=DOUBLE)
    for target in (
        labels,
        ndfast.Mix(labels, others, 0.3),
        ndfast.Mix(labels, others, torch.rand(5, dtype=DOUBLE)),
        torch.rand(5, 3, dtype=DOUBLE),
    ):
        for function in (ndfast.nd_loss, ndfast.attach_nd_loss):
            assert torch.autograd.gradcheck(
                lambda s, t, c, target=target, function=function: function(
                    s, t, c, target, weight=1.7, sample_weight=weights, reduction=reduction,
                    backend=backend,
                ),
                (s, t, c),
            )  # fmt: skip
    centres = torch.randn(5, 4, dtype=DOUBLE, requires_grad=True)
    for norms in (None, 2 * torch.rand(5, dtype=DOUBLE) + 1):
        assert torch.autograd.gradcheck(
            lambda s, c, t=norms: ndfast.nd_loss(
                s, t, c, None, reduction=reduction, backend=backend
            ),
            (s, centres),
        )


def test_what_a_label_out_of_range_leaves_goes_to_no_class() -> None:
    # On a GPU, where nobody looks at labels before: its row's gradient is NaN. More classes than
    # there are rows for such.
    rows = torch.tensor([[math.nan], [2.0], [math.nan], [3.0]])
    labels = torch.tensor([-1, 69, 70, 69])
    for mixed in (None, labels):
        sums = reference.add_by_class(rows, torch.zeros(70, 1), labels, mixed, None, 0.25)
        assert sums[69].item() == 5
        assert sums[:69].count_nonzero() == 0
