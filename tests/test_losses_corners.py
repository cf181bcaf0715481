"""Losses where logits are infinite, large, few or none, and where rows are ignored."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import ndfast
from ndfast.losses import cross_entropy, dist_loss, dkd_loss, hcl_loss, kd_loss

INF = math.inf

# Of student and teacher logits [N, K] and labels [N].
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda student, _, target: cross_entropy(student, target),
    "cross_entropy of a mix": lambda student, _, target: cross_entropy(
        student, ndfast.Mix(target, target, 0.25)
    ),
    "kd": lambda student, teacher, _: kd_loss(student, teacher, 2.0),
    "dkd": lambda student, teacher, target: dkd_loss(student, teacher, target, 1.5, 3.0, 2.0),
    "dist": lambda student, teacher, _: dist_loss(student, teacher, 1.5, 3.0, 2.0),
}
# And the HCL loss, of maps of 1 by K.
WITH_HCL = LOSSES | {"hcl": lambda *x: hcl_loss(*([maps[:, None, None]] for maps in x[:2]))}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of a row, with 0 · log 0 = 0."""
    there = p > 0
    return (p[there] * (p[there] / q[there]).log()).sum()


def kd_of_row(student: Tensor, teacher: Tensor, label: int) -> Tensor:
    return divergence(teacher.softmax(dim=0), student.softmax(dim=0))


def dkd_of_row(student: Tensor, teacher: Tensor, label: int) -> Tensor:
    (b_s, others_s), (b_t, others_t) = (
        (torch.stack([p[label], 1 - p[label]]), torch.cat([p[:label], p[label + 1 :]]))
        for p in (student.softmax(dim=0), teacher.softmax(dim=0))
    )
    nckd = 0.0
    if others_s.any() and others_t.any():
        nckd = divergence(others_t / others_t.sum(), others_s / others_s.sum())
    return divergence(b_t, b_s) + 8 * nckd


@pytest.mark.parametrize("name", ["kd", "dkd"])
@pytest.mark.parametrize(
    ("of_student", "of_teacher"),
    [
        ([], [0]),
        ([], [2, 3]),
        ([2], [2]),
        ([0], [0]),
        ([], [1, 2, 3, 4]),
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([2], []),
        ([0], []),
        ([1, 2, 3, 4], []),
    ],
)
def test_classes_that_are_not_there(
    name: str, of_student: list[int], of_teacher: list[int], seed: int
) -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    target = torch.tensor([0, 4, 2, 2])  # the first row's label is among those that are not there
    student[0, of_student] = teacher[0, of_teacher] = -INF
    by_row = kd_of_row if name == "kd" else dkd_of_row
    expected = sum(map(by_row, student, teacher, target.tolist())) / 4
    student.requires_grad_()
    if name == "kd":
        loss = kd_loss(student, teacher, 1.0)
    else:
        loss = dkd_loss(student, teacher, target, temperature=1.0)
    loss.backward()
    assert_close(loss, expected)
    assert student.grad.isfinite().all()
    if name == "kd":
        gradient = (student.detach().softmax(dim=1) - teacher.softmax(dim=1)) / 4
        assert_close(student.grad, gradient)
    both = student.isneginf() & teacher.isneginf()
    assert student.grad[both].count_nonzero() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [math.nan, INF])
def test_what_is_no_number_is_not_hidden(name: str, value: float, seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5)
    student[1, 2] = value
    assert LOSSES[name](student, teacher, torch.tensor([0, 4, 2, 2])).isnan()


def large_logits(N: int, K: int, dtype: torch.dtype) -> Tensor:
    """[2, N, K], whose columns of probabilities are no constants but for rounding.

    Of such a column DIST's value is the rounding's.
    """
    logits = (50 * torch.randn(2, N, K)).to(dtype)
    std, mean = torch.std_mean((logits.double() / 2).softmax(dim=2), dim=1, correction=0)
    return logits if N == 1 or (std > 0.01 * mean).all() else large_logits(N, K, dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("N", "K"), [(6, 5), (1, 5), (6, 2), (1, 2)])
def test_logits_times_50(name: str, dtype: torch.dtype, N: int, K: int, seed: int) -> None:
    student, teacher = large_logits(N, K, dtype)
    target = torch.randint(K, (N,))
    wide = student.double().requires_grad_()
    expected = LOSSES[name](wide, teacher.double(), target)
    expected.backward()
    loss = LOSSES[name](student.requires_grad_(), teacher, target)
    loss.backward()
    assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    assert_close(student.grad.double(), wide.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", WITH_HCL)
def test_no_row(name: str) -> None:
    student = torch.empty(0, 5, requires_grad=True)
    loss = WITH_HCL[name](student, torch.empty(0, 5), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 5)


@pytest.mark.parametrize("name", LOSSES)
def test_one_class(name: str, seed: int) -> None:
    student, teacher = torch.randn(2, 3, 1)
    student.requires_grad_()
    loss = LOSSES[name](student, teacher, torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == (4 * (1.5 + 3.0) if name == "dist" else 0)
    assert student.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", ["dkd", "cross_entropy", "cross_entropy of a mix"])
def test_ignored_rows(name: str, seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5)
    target = torch.tensor([0, -100, 2, -100])
    kept = target != -100
    loss = LOSSES[name](student.requires_grad_(), teacher, target)
    loss.backward()
    assert_close(loss, LOSSES[name](student[kept], teacher[kept], target[kept]))
    assert student.grad[~kept].count_nonzero() == 0
    none = LOSSES[name](student, teacher, torch.full((4,), -100))
    assert none.item() == 0
    assert torch.autograd.grad(none, student)[0].count_nonzero() == 0


def test_dkd_of_nan_in_an_ignored_row(seed: int) -> None:
    student, teacher = torch.randn(2, 2, 5)
    student[1] = teacher[1] = math.nan
    loss = dkd_loss(student.requires_grad_(), teacher, torch.tensor([3, -100]))
    loss.backward()
    assert_close(loss, dkd_loss(student[:1], teacher[:1], torch.tensor([3])))
    assert student.grad[1].count_nonzero() == 0


def test_a_mixed_row_is_ignored_for_either_label(seed: int) -> None:
    logits = torch.randn(4, 5)
    a, b = torch.tensor([0, -100, 2, 3]), torch.tensor([1, 2, -100, 4])
    loss = cross_entropy(logits, ndfast.Mix(a, b, 0.25))
    kept = torch.tensor([0, 3])
    assert_close(loss, cross_entropy(logits[kept], ndfast.Mix(a[kept], b[kept], 0.25)))


@pytest.mark.parametrize("lam", [1.0, torch.tensor(1.0), torch.tensor([1.0, 1.0])])
def test_a_label_without_a_share_may_be_of_no_class(lam: float | Tensor, seed: int) -> None:
    logits = torch.randn(2, 5)
    logits[0, 4] = -INF
    a, b = torch.tensor([0, 1]), torch.tensor([4, 1])
    assert_close(cross_entropy(logits, ndfast.Mix(a, b, lam)), cross_entropy(logits, a))


def test_cross_entropy_takes_what_pytorch_takes(seed: int) -> None:
    logits = torch.randn(4, 200)
    for labels in (torch.randn(4, 200).softmax(dim=1), torch.tensor([3, 0, 1, 2]).byte()):
        assert_close(
            cross_entropy(logits, labels, 0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
        )


@pytest.mark.parametrize("name", WITH_HCL)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_teacher_of_inference_mode(name: str, compiled: bool, seed: int) -> None:
    student, target = torch.randn(4, 5), torch.tensor([0, 4, 2, -100])
    with torch.inference_mode():
        teacher = torch.randn(4, 5)
    call = WITH_HCL[name]
    expected = torch.func.grad_and_value(call)(student, teacher.clone(), target)
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    loss = call(student.requires_grad_(), teacher, target)
    loss.backward()
    assert_close((student.grad, loss.detach()), expected)
