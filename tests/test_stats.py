"""NDStats: worked out by hand, the same on every backend, and beside the loss as it is without."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import compiles_anew, draw, every_option, rows_of
from torch import Tensor

import ndfast
from ndfast.backends import reference

S = torch.tensor([[3.0, 4.0], [0.0, 2.0], [8.0, 6.0], [1.0, 1.0]])
T = torch.tensor([[0.0, 10.0], [0.0, 2.0], [3.0, 4.0], [math.nan, 0.0]])
CLASS_MEANS = torch.tensor([[5.0, 0.0], [0.0, 0.5]])
LABELS = torch.tensor([0, 1, 1, -100])
# Rows 0 to 2: cosines 3/5, 1, 6/10; ratios 5/10, 2/2, 10/5; the second a tie, the third longer.
EXPECTED = (2.2 / 3, 3.5 / 3, 2 / 3)


def numbers(stats: ndfast.NDStats) -> list[float]:
    return [value.item() for value in stats]


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_by_hand(backend: str, needs_gradient: bool) -> None:
    student = S.clone().requires_grad_(needs_gradient)
    options = {"weight": 7.0, "sample_weight": torch.tensor([0.0, 1.0, 5.0, 1.0])}
    arguments = (student, T, CLASS_MEANS, LABELS)
    loss, stats = ndfast.nd_loss(*arguments, **options, return_stats=True, backend=backend)
    features, attached, as_attached = ndfast.attach_nd_loss(
        *arguments, **options, return_stats=True, backend=backend
    )
    assert numbers(stats) == pytest.approx(EXPECTED)
    assert numbers(as_attached) == pytest.approx(EXPECTED)
    assert torch.equal(features, student)
    assert loss == attached == ndfast.nd_loss(*arguments, **options, backend=backend)
    assert all(value.dim() == 0 and not value.requires_grad for value in stats)


def test_teacher_as_norms_or_absent(backend: str) -> None:
    norms = torch.tensor([10.0, 2.0, 5.0, math.nan])
    for teacher, expected in ((norms, EXPECTED), (None, (EXPECTED[0], math.nan, math.nan))):
        _, stats = ndfast.nd_loss(
            S, teacher, CLASS_MEANS, LABELS, return_stats=True, backend=backend
        )
        assert numbers(stats) == pytest.approx(expected, nan_ok=True)


def test_of_zero_norms(backend: str) -> None:
    zeros = torch.zeros(1, 2)
    for student, teacher, expected in ((zeros, zeros, (0, 0, 1)), (S[:1], zeros, (0.6, 10, 1))):
        _, stats = ndfast.nd_loss(
            student, teacher, CLASS_MEANS, LABELS[:1], eps=0.5, return_stats=True, backend=backend
        )
        assert numbers(stats) == pytest.approx(expected)


def test_of_no_row_that_counts(backend: str) -> None:
    for rows, labels in ((0, []), (2, [-100, -100])):
        loss, stats = ndfast.nd_loss(
            S[:rows], T[:rows], CLASS_MEANS, torch.tensor(labels, dtype=torch.int64),
            return_stats=True, backend=backend,
        )  # fmt: skip
        assert loss == 0
        assert all(map(math.isnan, numbers(stats)))


def test_a_nan_is_shown(backend: str) -> None:
    _, stats = ndfast.nd_loss(
        S, T, CLASS_MEANS, torch.tensor([0, 1, 1, 0]), return_stats=True, backend=backend
    )
    assert [math.isnan(value) for value in numbers(stats)] == [False, True, True]


def expected_stats(case: Any) -> list[float]:
    """From the features themselves, in float64."""
    rows = rows_of(case.to(torch.float64))
    counts = reference.rows_that_count(rows.target, rows.target_b, rows.ignore_index)
    counted = slice(None) if counts is None else counts
    centres = reference.gather_centres(*rows.centres, torch.float64)
    cosine = F.cosine_similarity(rows.student, centres)[counted].mean()
    if rows.teacher is None:
        return [cosine.item(), math.nan, math.nan]
    n_s, n_t = (torch.linalg.vector_norm(x.reshape(9, -1), dim=1) for x in rows[:2])
    longer = (n_s >= n_t)[counted].double().mean()
    return [cosine.item(), (n_s / n_t)[counted].mean().item(), longer.item()]


def test_every_option(backend: str, seed: int) -> None:
    for number, option in enumerate(every_option()):
        if backend == "triton" and number % 4:  # interpreted, which takes its time
            continue
        case = draw(9, 24, 4, torch.float32, **option)
        arguments = (case.student.requires_grad_(), case.teacher, case.class_means, case.target)
        plain = ndfast.nd_loss(*arguments, **case.options, backend=backend)
        loss, stats = ndfast.nd_loss(*arguments, **case.options, return_stats=True, backend=backend)
        assert torch.equal(loss, plain)
        expected = pytest.approx(expected_stats(case), rel=1e-5, abs=1e-6, nan_ok=True)
        assert numbers(stats) == expected, option
        upstream = case.upstream.to(loss.dtype)
        gradients = [torch.autograd.grad(x, case.student, upstream)[0] for x in (loss, plain)]
        assert torch.equal(*gradients)


def test_half_precision_and_several_dimensions(backend: str, seed: int) -> None:
    student, teacher = (torch.randn(2, 8, 3, dtype=torch.float16) for _ in range(2))
    class_means, labels = torch.randn(4, 8), torch.randint(0, 4, (2, 3))
    options = {"reduction": "none", "return_stats": True, "backend": backend}
    loss, stats = ndfast.nd_loss(student, teacher, class_means, labels, **options)
    s, t = (x.float().movedim(1, -1).reshape(6, 8) for x in (student, teacher))
    assert loss.shape == (2, 3)
    assert all(value.dtype == torch.float32 for value in stats)
    cosine = F.cosine_similarity(s, class_means[labels.flatten()]).mean().item()
    assert stats.cosine.item() == pytest.approx(cosine, rel=1e-4)
    assert stats.norm_ratio.item() == pytest.approx((s.norm(dim=1) / t.norm(dim=1)).mean().item())


@compiles_anew
@pytest.mark.parametrize("attached", [False, True])
def test_compiled_as_eager(attached: bool, seed: int) -> None:
    torch._dynamo.reset()
    call = ndfast.attach_nd_loss if attached else ndfast.nd_loss

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(student: Tensor, target: Tensor) -> tuple[Tensor, ndfast.NDStats]:
        *_, loss, stats = call(student, T[:3], CLASS_MEANS, target, return_stats=True)
        return loss, stats

    student = S[:3].clone().requires_grad_()
    loss, stats = step(student, LABELS[:3])
    assert numbers(stats) == pytest.approx(EXPECTED)
    (gradient,) = torch.autograd.grad(loss, student)
    plain = ndfast.nd_loss(student, T[:3], CLASS_MEANS, LABELS[:3])
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, student)[0])


def test_module_and_torch_func() -> None:
    module = ndfast.NDLoss(CLASS_MEANS, weight=2.0)
    loss, stats = module(S, T, LABELS, return_stats=True)
    assert numbers(stats) == pytest.approx(EXPECTED)
    assert loss == module(S, T, LABELS)
    gradient, stats = torch.func.grad(
        lambda s: ndfast.nd_loss(s, T, CLASS_MEANS, LABELS, return_stats=True), has_aux=True
    )(S)
    assert numbers(stats) == pytest.approx(EXPECTED)
    assert gradient.shape == S.shape


def test_the_old_name_of_the_share_of_longer_rows() -> None:
    stats = ndfast.NDStats(torch.tensor(0.1), torch.tensor(0.2), torch.tensor(0.3))
    with pytest.warns(DeprecationWarning, match="^NDStats.longer: is now fraction_student_longer$"):
        assert stats.longer is stats.fraction_student_longer
