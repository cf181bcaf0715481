"""The losses beside the ND loss by hand, by other ways to the same value, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import ndfast
from ndfast.losses import cross_entropy, dist_loss, dkd_loss, hcl_loss, kd_loss

TARGET, OTHER = torch.tensor([0, 4, 2, 2]), torch.tensor([3, 1, 2, 0])
MIX = ndfast.Mix(TARGET, OTHER, torch.tensor([0.25, 0.5, 0.75, 1.0]))

# Each of student and teacher logits [4, 5]; for the HCL loss they are one map of 4 by 5.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda student, _: cross_entropy(student, TARGET, 0.1),
    "cross_entropy of a mix": lambda student, _: cross_entropy(student, MIX, 0.1),
    "kd": lambda student, teacher: kd_loss(student, teacher, 2.0),
    "dkd": lambda student, teacher: dkd_loss(student, teacher, TARGET, 1.5, 3.0, 2.0),
    "dist": lambda student, teacher: dist_loss(student, teacher, 1.5, 3.0, 2.0),
    "hcl": lambda student, teacher: hcl_loss([student[None, None]], [teacher[None, None]]),
}


def log(*rows: list[float]) -> Tensor:
    """Logits whose softmax at temperature 1 is ``rows``."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_cross_entropy_by_hand() -> None:
    logits = log([3 / 4, 1 / 4], [1 / 2, 1 / 2])
    labels, other = torch.tensor([0, 1]), torch.tensor([1, 1])
    first, second = math.log(4 / 3), math.log(4)  # of the first row's classes
    half = math.log(2)  # of the second row's, either of them
    assert cross_entropy(logits, labels).item() == pytest.approx((first + half) / 2)
    smoothed = 0.95 * first + 0.05 * second
    for target in (labels, ndfast.Mix(labels, labels, 0.25)):
        loss = cross_entropy(logits, target, 0.1)
        assert loss.item() == pytest.approx((smoothed + half) / 2)
    mixed = 0.25 * first + 0.75 * second
    for lam in (0.25, torch.tensor(0.25), torch.tensor([0.25, 0.5])):
        loss = cross_entropy(logits, ndfast.Mix(labels, other, lam))
        assert loss.item() == pytest.approx((mixed + half) / 2)


def test_kd_by_hand() -> None:
    student = (4 * log([1 / 2, 1 / 2], [1 / 3, 2 / 3])).requires_grad_()
    teacher = 4 * log([3 / 4, 1 / 4], [1 / 3, 2 / 3])
    loss = kd_loss(student, teacher, 4.0)
    loss.backward()
    divergence = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert loss.item() == pytest.approx(16 * divergence / 2)
    # ∂/∂z_s = T (p_s - p_t) / N
    assert_close(student.grad, torch.tensor([[-0.5, 0.5], [0.0, 0.0]], dtype=torch.float64))


def test_dkd_by_hand() -> None:
    student = 2 * log([1 / 4, 1 / 4, 1 / 2], [1 / 3, 1 / 3, 1 / 3])
    teacher = 2 * log([1 / 2, 1 / 4, 1 / 4], [1 / 3, 1 / 3, 1 / 3])
    # Of the first row b is (1/2, 1/2) and (1/4, 3/4), and p̂ is (1/2, 1/2) and (1/3, 2/3).
    tckd = (math.log(2) + math.log(2 / 3)) / 2
    nckd = (math.log(3 / 2) + math.log(3 / 4)) / 2
    loss = dkd_loss(student, teacher, torch.tensor([0, 1]), alpha=2.0, beta=3.0, temperature=2.0)
    assert loss.item() == pytest.approx(4 * (2 * tckd + 3 * nckd) / 2)


def test_dkd_from_probabilities(seed: int) -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    target = torch.randint(5, (6,))
    total = 0.0
    for row, label in enumerate(target.tolist()):
        p_s, p_t = ((logits[row] / 3).softmax(dim=0).tolist() for logits in (student, teacher))
        b_s, b_t = p_s.pop(label), p_t.pop(label)
        total += 1.5 * (b_t * math.log(b_t / b_s) + (1 - b_t) * math.log((1 - b_t) / (1 - b_s)))
        for q_s, q_t in zip(p_s, p_t, strict=True):
            share_s, share_t = q_s / (1 - b_s), q_t / (1 - b_t)
            total += 2.5 * share_t * math.log(share_t / share_s)
    assert dkd_loss(student, teacher, target, 1.5, 2.5, 3.0).item() == pytest.approx(9 * total / 6)


def test_kd_is_dkd_with_the_factors_of_a_row(seed: int) -> None:
    student, teacher = 3 * torch.randn(2, 4, 5, dtype=torch.float64)
    for s, t, label in zip(student.split(1), teacher.split(1), TARGET.split(1), strict=True):
        beta = 1 - (t / 2).softmax(dim=1)[0, label].item()
        decoupled = dkd_loss(s, t, label, alpha=1.0, beta=beta, temperature=2.0)
        assert_close(decoupled, kd_loss(s, t, 2.0))


def test_dkd_of_a_certain_teacher_and_a_student_as_certain_of_another_class() -> None:
    student = torch.tensor([[-1e4, 0.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[1e4, 1.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([0])
    # b is (1, 0) of the teacher; log p̂ of the two differs by ±1.
    tckd, nckd = (dkd_loss(student, teacher, target, *x, 1.0) for x in ((1.0, 0.0), (0.0, 1.0)))
    assert tckd.item() == pytest.approx(1e4 + math.log(1 + math.e))
    assert nckd.item() == pytest.approx(math.tanh(1 / 2))


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_logits_of_10000(name: str, seed: int) -> None:
    signs = torch.tensor([-1e4, 1e4])
    student, teacher = signs[torch.randint(2, (2, 4, 5))]
    student.requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_dkd_of_two_classes_has_one_part(seed: int) -> None:
    student, teacher = torch.randn(2, 3, 2)
    target = torch.tensor([0, 1, 1])
    assert dkd_loss(student, teacher, target, alpha=0.0, beta=1.0).item() == 0
    assert_close(dkd_loss(student, teacher, target, alpha=1.0, beta=0.0), kd_loss(student, teacher))


def test_dist_by_hand() -> None:
    student = 3 * log([1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4])
    teacher = 3 * log([1 / 4, 1 / 2, 1 / 4], [1 / 4, 1 / 4, 1 / 2])
    # Rows: (2, -1, -1) and (-1, 2, -1), and (-1, 2, -1) and (-1, -1, 2): both correlate by -3/6.
    # Columns: the teacher's first and the student's last are constant: 0; the second: -1.
    loss = dist_loss(student, teacher, beta=2.0, gamma=3.0, temperature=3.0)
    assert loss.item() == pytest.approx(9 * (2 * 3 / 2 + 3 * 4 / 3), rel=1e-6)  # 1e-6: its eps


def test_dist_from_correlation_coefficients(seed: int) -> None:
    student, teacher = 2 * torch.randn(2, 6, 5, dtype=torch.float64)
    p_s, p_t = (student / 2).softmax(dim=1), (teacher / 2).softmax(dim=1)
    rows = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p_s, p_t, strict=True)]
    columns = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p_s.T, p_t.T, strict=True)]
    expected = 4 * (1.5 * (1 - sum(rows) / 6) + 2.5 * (1 - sum(columns) / 5))
    loss = dist_loss(student, teacher, 1.5, 2.5, 2.0)
    assert_close(loss, expected, rtol=1e-4, atol=1e-4)  # a narrow column: its eps


@pytest.mark.parametrize("constant", ["student", "teacher"])
def test_dist_of_constant_probabilities(constant: str, seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5)
    (student if constant == "student" else teacher).fill_(1.0)
    loss = dist_loss(student.requires_grad_(), teacher, beta=2.0, gamma=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(5)
    assert student.grad.isfinite().all()


def test_dist_of_one_row(seed: int) -> None:
    student, teacher = torch.randn(2, 1, 5)
    student.requires_grad_()
    within_class = dist_loss(student, teacher, beta=0.0, gamma=3.0, temperature=2.0)
    assert within_class.item() == 12
    assert torch.autograd.grad(within_class, student)[0].count_nonzero() == 0
    correlation = torch.corrcoef(torch.cat([student, teacher]).detach().softmax(dim=1))[0, 1]
    loss = dist_loss(student, teacher, beta=1.0, gamma=0.0).item()
    assert loss == pytest.approx(1 - correlation.item(), abs=1e-4)


def dist_as_published(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p_s, p_t = ((logits.double() / temperature).softmax(dim=1) for logits in (student, teacher))
    total = torch.zeros((), dtype=torch.float64)
    for dim in (0, 1):
        x, y = (p - p.mean(dim, keepdim=True) for p in (p_s, p_t))
        norms = x.square().sum(dim).sqrt() * y.square().sum(dim).sqrt()
        total += 1 - ((x * y).sum(dim) / (norms + 1e-8)).mean()
    return temperature**2 * total


def check_as_published(student: Tensor, teacher: Tensor, temperature: float) -> None:
    wide = student.double().requires_grad_()
    expected = dist_as_published(wide, teacher, temperature)
    expected.backward()
    loss = dist_loss(student.requires_grad_(), teacher, temperature=temperature)
    loss.backward()
    assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert_close(student.grad.double(), wide.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("N", "K", "scale"), [(16, 10, 5.0), (16, 10, 0.3), (16, 1000, 0.1), (64, 1000, 0.02)]
)
def test_dist_is_as_published(temperature: float, N: int, K: int, scale: float, seed: int) -> None:
    check_as_published(scale * torch.randn(N, K), 3 * torch.randn(N, K), temperature)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_of_a_class_of_next_to_no_probability_is_as_published(
    temperature: float, seed: int
) -> None:
    teacher = 3 * torch.randn(8, 6)
    for log_p in (*torch.arange(-26.0, -16.0, 0.5).tolist(), -60.0, -85.0, -100.0):
        student = torch.randn(8, 6)
        student[:, 0] += temperature * log_p
        check_as_published(student, teacher, temperature)


def test_dist_of_a_nearly_constant_row_by_hand() -> None:
    # p = 1/2 ± 1/200, centred norm √2/200, of the mean √2/100: q = (√2/2)² = 1/2, weight 3/4.
    student, teacher = log([101 / 200, 99 / 200]), log([3 / 4, 1 / 4])
    for sign in (1, -1):
        loss = dist_loss(sign * student, teacher, gamma=0.0)
        assert loss.item() == pytest.approx(1 - sign * 3 / 4, abs=1e-5)  # 1e-5: its eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "K"), [(1, 10), (2, 10), (16, 10), (16, 2), (16, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_has_a_bounded_gradient_at_and_near_constant_rows_and_columns(
    dtype: torch.dtype, N: int, K: int, temperature: float, seed: int
) -> None:
    teacher, noise = 3 * torch.randn(N, K), torch.randn(N, K)
    bound = 77.1 * temperature * (1 / math.sqrt(N) + 1 / math.sqrt(K))
    for start in (torch.zeros(N, K), torch.full((N, K), 5.0), torch.randn(1, K).expand(N, K)):
        for size in (0.0, *(10.0**exponent for exponent in range(-12, 1)), 0.003, 0.03):
            student = (start + size * noise).to(dtype).requires_grad_()
            loss = dist_loss(student, teacher, temperature=temperature)
            loss.backward()
            assert loss.isfinite()
            assert student.grad.double().norm() < bound


def test_gradients_of_dist_near_a_constant_row(seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    student = (0.005 * student).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: dist_loss(logits, teacher), student, eps=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_trains_a_classifier_that_starts_at_zero(temperature: float, seed: int) -> None:
    features = torch.randn(64, 192)
    target = features[:, :10].argmax(dim=1)
    teacher = 8 * features[:, :10]
    weight = torch.zeros(192, 10, requires_grad=True)
    losses = []
    for _ in range(30):
        logits = features @ weight
        ce = cross_entropy(logits, target)
        distillation = dist_loss(logits, teacher, temperature=temperature)
        (gradient,) = torch.autograd.grad(ce + distillation, weight)
        losses.append((ce.item(), distillation.item() / temperature**2))
        weight = (weight.detach() - 0.01 * gradient).requires_grad_()
    assert losses[0] == pytest.approx((math.log(10), 2.0))
    assert max(ce for ce, _ in losses) < 10
    assert losses[-1][1] < 0.9


def test_hcl_by_hand() -> None:
    square, line = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[1.0, 3.0]]]])
    wide = torch.tensor([1.0, 0.0, 0.0])[:, None].expand(1, 1, 3, 5)
    stages = [square, line, wide]
    # Mean squares 30/4, 5 and 1/3; means 5/2, 2 and 1/3. The wide map is averaged into 3 by 4, of
    # mean square 1/3 again, and into 2 by 2, whose rows are 1/2 and 0.
    of_square = (30 / 4 + 25 / 4 / 2) / (1 + 1 / 2)
    of_line = (5 + 4 / 2) / (1 + 1 / 2)
    of_wide = (1 / 3 + 1 / 3 / 2 + 1 / 8 / 4 + 1 / 9 / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    loss = hcl_loss(stages, [torch.zeros_like(stage) for stage in stages])
    assert loss.item() == pytest.approx(of_square + of_line + of_wide)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8), (2, 8)])
def test_hcl_from_means_of_blocks(shape: tuple[int, int], seed: int) -> None:
    height, width = shape
    student, teacher = torch.randn(2, 2, 3, height, width, dtype=torch.float64)
    total = (student - teacher).square().mean()
    for side, weight in ((4, 1 / 2), (2, 1 / 4), (1, 1 / 8)):
        rows = min(height, side)
        blocks = (2, 3, rows, height // rows, side, width // side)
        means = [maps.reshape(blocks).mean(dim=(3, 5)) for maps in (student, teacher)]
        total += weight * (means[0] - means[1]).square().mean()
    assert_close(hcl_loss([student], [teacher]), total / (15 / 8))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str, seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: LOSSES[name](logits, teacher), student)


@pytest.mark.parametrize("name", [name for name in LOSSES if "cross" not in name])
def test_the_teacher_is_a_constant(name: str, seed: int) -> None:
    student, teacher = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    LOSSES[name](student, teacher).backward()
    assert student.grad.count_nonzero() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_computed_in_float32(name: str, seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5).bfloat16()
    expected = LOSSES[name](student.double(), teacher.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](student, teacher)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
