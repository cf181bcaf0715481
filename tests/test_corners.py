"""Values and shapes at the edge, on every backend that runs CPU tensors."""

from __future__ import annotations

import math
import platform

import pytest
import torch
from cases import assert_as_defined, draw
from torch import Tensor

import ndfast
from ndfast.backends import native


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_nan_and_inf_stay_in_their_row(backend: str, where: str, value: float, seed: int) -> None:
    student, teacher = torch.randn(6, 40), torch.randn(6, 40)
    {"student": student, "teacher": teacher}[where][2, 7] = value
    student.requires_grad_()
    teacher.requires_grad_()
    class_means, labels = torch.randn(3, 40), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = ndfast.nd_loss(student, teacher, class_means, labels, reduction="none", backend=backend)
    grad_student, grad_teacher = gradients(loss.sum(), student, teacher)
    others = [0, 1, 3, 4, 5]
    assert loss[others].isfinite().all()
    assert grad_student[others].isfinite().all()
    assert grad_teacher[others].isfinite().all()
    if where == "teacher" and math.isinf(value):
        # 1 - p/∞: the formula itself gives a finite loss, and a gradient of zero
        assert loss[2] == 1
        assert (grad_student[2] == 0).all()
    else:
        assert loss[2].isnan()
        assert grad_student[2].isnan().all()
        # An infinite student leads, and a teacher that does not lead has gradient 0.
        assert grad_teacher[2].isnan().all() if math.isnan(value) else (grad_teacher[2] == 0).all()


def test_nan_class_mean_reaches_its_class_only(backend: str, seed: int) -> None:
    student = torch.randn(4, 9, requires_grad=True)
    class_means = torch.randn(2, 9)
    class_means[1, 3] = math.nan
    labels = torch.tensor([0, 1, 0, 1])
    loss = ndfast.nd_loss(student, None, class_means, labels, reduction="none", backend=backend)
    (grad,) = gradients(loss.sum(), student)
    assert loss.isnan().tolist() == [False, True, False, True]
    assert grad.isnan().all(dim=1).tolist() == [False, True, False, True]


def test_a_row_whose_loss_is_nan_is_not_taken_for_an_ignored_one(backend: str, seed: int) -> None:
    student, teacher = torch.randn(2, 9, requires_grad=True), torch.randn(2, 9)
    teacher.mul_(10).requires_grad_()  # longer, and so the student's beta is 0
    class_means = torch.randn(2, 9)
    class_means[1, 3] = math.inf
    class_means.requires_grad_()
    inputs = (student, teacher, class_means)
    loss = ndfast.nd_loss(*inputs, torch.tensor([0, 1]), reduction="none", backend=backend)
    assert loss.isnan().tolist() == [False, True]
    for upstream in (1.0, 2.0):
        grads = torch.autograd.grad(upstream * loss.sum(), inputs, retain_graph=True)
        for grad in grads:
            assert grad.isnan().any(dim=1).tolist() == [False, True]


def test_sums_of_many_equal_terms_keep_their_precision(backend: str) -> None:
    # Rounding errors of equal terms do not cancel; a long row adds thousands.
    if backend != "native":
        pytest.skip("these sum as torch and Triton do")
    D = 16_384
    s, t, c = (torch.full((1, D), value) for value in (0.1, 0.2, 0.1))
    labels = torch.tensor([0])
    for name in native.capabilities():
        native.set_capability(name)
        try:
            leaf, exact = s.clone().requires_grad_(), s.double().requires_grad_()
            ndfast.nd_loss(leaf, t, c, labels, backend=backend).backward()
            ndfast.nd_loss(exact, t.double(), c.double(), labels, backend="reference").backward()
        finally:
            native.set_capability(native.capabilities()[0])
        assert (leaf.grad - exact.grad).norm() < 1e-5 * exact.grad.norm(), name


def test_ignored_rows_may_hold_anything(backend: str, seed: int) -> None:
    student, teacher = torch.randn(4, 33), torch.randn(4, 33)
    student[1], teacher[3] = math.nan, math.inf
    student.requires_grad_()
    teacher.requires_grad_()
    class_means = torch.randn(3, 33, requires_grad=True)
    labels = torch.tensor([0, -100, 2, -100])
    inputs = (student, teacher, class_means)
    loss = ndfast.nd_loss(*inputs, labels, backend=backend)
    grad_student, grad_teacher, grad_means = gradients(loss, *inputs)
    kept = ndfast.nd_loss(student[::2], teacher[::2], class_means, labels[::2], backend="reference")
    torch.testing.assert_close(loss, kept)
    assert (grad_student[1::2] == 0).all()
    assert (grad_teacher[1::2] == 0).all()
    assert grad_means.isfinite().all()
    assert (grad_means[1] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("N", [0, 3])
def test_no_row_that_counts_is_loss_zero(backend: str, N: int, reduction: str) -> None:
    student = torch.randn(N, 8, requires_grad=True)
    class_means = torch.randn(4, 8, requires_grad=True)
    labels = torch.full((N,), -100)
    loss = ndfast.nd_loss(
        student, student.detach(), class_means, labels, reduction=reduction, backend=backend
    )
    assert loss.shape == ((N,) if reduction == "none" else ())
    grad_student, grad_means = gradients(loss.sum(), student, class_means)
    assert (loss == 0).all()
    assert grad_student.shape == (N, 8)
    assert (grad_student == 0).all()
    assert (grad_means == 0).all()


def test_a_mix_is_ignored_by_either_label(backend: str) -> None:
    student = torch.tensor([[3.0, 4.0]] * 3, requires_grad=True)
    class_means = torch.tensor([[0.0, 2.0]])
    labels, others = torch.tensor([0, 0, -100]), torch.tensor([0, -100, 0])
    target = ndfast.Mix(labels, others, 0.3)
    loss = ndfast.nd_loss(student, None, class_means, target, backend=backend)
    (grad,) = gradients(loss, student)
    assert loss.item() == pytest.approx(0.2)  # p = 4, m = 5, and one row that counts
    assert grad[0].tolist() == pytest.approx([0.096, -0.072])
    assert (grad[1:] == 0).all()


def test_uint8_labels_do_not_wrap_around(backend: str, seed: int) -> None:
    # As uint8, -100 is 156 and 300 is 44: neither may ignore a row or put it out of range.
    student, class_means = torch.randn(3, 8), torch.randn(300, 8, requires_grad=True)
    labels = torch.tensor([156, 44, 255])
    losses = [
        ndfast.nd_loss(student, None, class_means, target, backend=backend)
        for target in (labels, labels.to(torch.uint8))
    ]
    assert losses[0] == losses[1]
    assert torch.equal(*(gradients(loss, class_means)[0] for loss in losses))


@pytest.mark.parametrize("D", [8, 64, 640, 37])
def test_int32_labels_keep_their_sign(D: int, backend: str, seed: int) -> None:
    # 2^32 - 100 would be no class, and its row not the one that is ignored.
    student, class_means = torch.randn(5, D, requires_grad=True), torch.randn(4, D)
    labels = torch.tensor([0, -100, 3, -100, 1])
    losses = [
        ndfast.nd_loss(student, None, class_means, target, backend=backend)
        for target in (labels, labels.int())
    ]
    assert losses[0] == losses[1]
    assert losses[0].isfinite()
    assert torch.equal(*(gradients(loss, student)[0] for loss in losses))


def test_weights_that_sum_to_zero_give_loss_zero(backend: str, seed: int) -> None:
    student = torch.randn(3, 8, requires_grad=True)
    loss = ndfast.nd_loss(
        student, None, torch.randn(2, 8), torch.tensor([0, 1, 1]), sample_weight=torch.zeros(3),
        backend=backend,
    )  # fmt: skip
    assert loss == 0
    assert (gradients(loss, student)[0] == 0).all()


def test_zeros_are_finite(backend: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        student = torch.zeros(2, 16, dtype=dtype, requires_grad=True)
        teacher = torch.zeros(2, 16, dtype=dtype, requires_grad=True)
        for class_means in (torch.zeros(1, 16), torch.ones(1, 16)):
            class_means.requires_grad_()
            inputs = (student, teacher, class_means)
            loss = ndfast.nd_loss(*inputs, torch.tensor([0, 0]), backend=backend)
            assert loss == 1
            assert all(grad.isfinite().all() for grad in gradients(loss, *inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_tie_of_norms_is_the_students(backend: str, dtype: torch.dtype, seed: int) -> None:
    # Equal rows must have bitwise equal norms for this, whatever way their squares are summed.
    N = 3 if backend == "triton" else 20  # the interpreter takes its time for each
    for D in (1, 7, 33, 200):
        student = torch.randn(N, D).to(dtype).requires_grad_()
        teacher = student.detach().clone().requires_grad_()
        class_means, labels = torch.randn(3, D), torch.randint(0, 3, (N,))
        alone = ndfast.nd_loss(student, None, class_means, labels, backend=backend)
        loss = ndfast.nd_loss(student, teacher, class_means, labels, backend=backend)
        grad_student, grad_teacher = gradients(loss, student, teacher)
        assert (grad_teacher == 0).all()
        torch.testing.assert_close(grad_student, *gradients(alone, student))


@pytest.mark.parametrize("size", [1e-20, 1e-12, 1e-6, 1e6, 1e15])
def test_tiny_and_huge_features(backend: str, size: float, seed: int) -> None:
    case = draw(5, 40, 3, torch.float32)
    case.student.mul_(size)
    case.teacher.mul_(size)
    # The norms are below eps = 1e-8 at 1e-20 and 1e-12: m is eps then.
    assert_as_defined(case, backend, size)


def test_non_contiguous_inputs(backend: str, seed: int) -> None:
    student, teacher = torch.randn(12, 80)[::2, ::2], torch.randn(40, 6).t()
    class_means = torch.randn(4, 50)[:, 5:45]
    labels = torch.tensor([0, 9, 1, 9, 2, 9, 3, 9, 0, 9, 1, 9])[::2]
    for a, b in ((student, teacher), (student[:, 1:], teacher[:, 1:])):
        s, t, c = (x.detach().requires_grad_() for x in (a, b, class_means[:, : a.shape[1]]))
        loss = ndfast.nd_loss(s, t, c, labels, backend=backend)
        S, T, C = (x.detach().double().contiguous().requires_grad_() for x in (s, t, c))
        exact = ndfast.nd_loss(S, T, C, labels, backend="reference")
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
        for got, expected in zip(gradients(loss, s, t, c), gradients(exact, S, T, C), strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-7)


def test_trailing_dimensions_are_rows(backend: str, seed: int) -> None:
    student = torch.randn(2, 7, 3, 2, requires_grad=True)
    teacher, labels = torch.randn(2, 7, 3, 2), torch.randint(0, 4, (2, 3, 2))
    class_means, weights = torch.randn(4, 7), torch.rand(2, 3, 2)
    loss = ndfast.nd_loss(
        student, teacher, class_means, labels, sample_weight=weights, reduction="none",
        backend=backend,
    )  # fmt: skip
    assert loss.shape == (2, 3, 2)
    (grad,) = gradients(loss.sum(), student)
    for n in range(2):
        for i in range(3):
            for j in range(2):
                row = student[n, :, i, j].detach()[None].requires_grad_()
                one = weights[n, i, j] * ndfast.nd_loss(
                    row, teacher[n, :, i, j][None], class_means, labels[n, i, j][None],
                    backend="reference",
                )  # fmt: skip
                torch.testing.assert_close(loss[n, i, j], one)
                torch.testing.assert_close(grad[n, :, i, j][None], gradients(one, row)[0])
    norms = torch.linalg.vector_norm(teacher, dim=1)
    by_norms = ndfast.nd_loss(
        student, norms, class_means, labels, sample_weight=weights, reduction="none",
        backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(by_norms, loss)


def test_pooled_features_are_rows(backend: str, seed: int) -> None:
    student, teacher = torch.randn(3, 7, 1, 1), torch.randn(3, 7, 1, 1)
    class_means, labels = torch.randn(4, 7), torch.tensor([0, 3, 1])
    flat = ndfast.nd_loss(student.flatten(1), teacher.flatten(1), class_means, labels)
    pooled = ndfast.nd_loss(student, teacher, class_means, labels, backend=backend)
    torch.testing.assert_close(pooled, flat)
    torch.testing.assert_close(
        ndfast.nd_loss(student, teacher, class_means, labels.view(3, 1, 1), backend=backend), flat
    )


def test_inputs_are_not_written(backend: str, seed: int) -> None:
    for dtype in (torch.float32, torch.float16):
        case = draw(6, 33, 4, dtype, target="mix by row", weighted=True)
        tensors = [
            case.student, case.teacher, case.class_means, case.target.target_a,
            case.target.target_b, case.target.lam, case.options["sample_weight"],
        ]  # fmt: skip
        before = [(x.clone(), x._version) for x in tensors]
        case.run(backend)
        for x, (copy, version) in zip(tensors, before, strict=True):
            assert torch.equal(x, copy)
            assert x._version == version


def test_a_label_changed_after_forward_is_never_followed(backend: str, seed: int) -> None:
    # PyTorch notices a changed tensor, but not one changed through .data or NumPy.
    student = torch.randn(3, 8, dtype=torch.float16, requires_grad=True)
    class_means = torch.randn(2, 8, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    loss = ndfast.nd_loss(student, None, class_means, labels, backend=backend)
    labels.numpy()[2] = 1 << 40
    grad_student, _ = gradients(loss, student, class_means)
    assert grad_student[:2].isfinite().all()
    assert grad_student[2].isnan().all()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc is not told to")
def test_memory_of_the_librarys_outputs_is_poisoned() -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False  # as its ABI allocates
    assert (torch.empty(1000, dtype=torch.uint8) == 0xFE).all()
