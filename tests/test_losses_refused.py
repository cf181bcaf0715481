"""What the losses refuse: labels, logits, temperatures and shares that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ndfast
from ndfast.losses import cross_entropy, dist_loss, dkd_loss, kd_loss

of_logits = pytest.mark.parametrize(
    "loss", [kd_loss, partial(dkd_loss, target=torch.zeros(4, dtype=torch.int64)), dist_loss]
)


@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([[0], [1], [2], [3]]),
        torch.tensor([0, 1, 2]),
        torch.tensor([1]),
        torch.tensor(1),
        torch.tensor([0.0, 1.0, 2.0, 3.0]),
        torch.tensor([0, 1, 2, 3], dtype=torch.int32),
        torch.tensor([True, False, True, False]),
        torch.tensor([0, 1, 2, 5]),
        torch.tensor([0, 1, 2, -1]),
    ],
    ids=lambda target: f"{list(target.shape)}, {target.dtype}, {target.flatten()[-1]}",
)
def test_wrong_labels_raise_what_cross_entropy_raises(target: Tensor, seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5)
    with pytest.raises(Exception) as expected:  # noqa: PT011
        F.cross_entropy(student, target)
    right = torch.tensor([0, 1, 2, 3])
    for wrong in (
        lambda: dkd_loss(student, teacher, target),
        lambda: cross_entropy(student, target),
        lambda: cross_entropy(student, ndfast.Mix(target, right, 0.5)),
        lambda: cross_entropy(student, ndfast.Mix(right, target, 0.5)),
    ):
        with pytest.raises(type(expected.value)) as found:
            wrong()
        assert str(found.value) == str(expected.value)


def test_class_probabilities_are_no_labels_of_dkd(seed: int) -> None:
    student, teacher = torch.randn(2, 4, 5)
    with pytest.raises(RuntimeError, match="multi-target not supported"):
        dkd_loss(student, teacher, torch.full((4, 5), 0.2))
    with pytest.raises(TypeError, match=r"'target' .* must be Tensor, not list"):
        dkd_loss(student, teacher, [0, 1, 2, 3])


@of_logits
@pytest.mark.parametrize(
    ("student", "teacher", "error", "sentence"),
    [
        (torch.zeros(4, 5), torch.zeros(4, 1), ValueError,
         r"^teacher_logits: got shape \[4, 1\]; expected \[4, 5\], that of student_logits$"),
        (torch.zeros(1, 5), torch.zeros(4, 5), ValueError, r"^teacher_logits: got shape \[4, 5\]"),
        (torch.zeros(5), torch.zeros(5), ValueError,
         r"^student_logits: got shape \[5\]; expected \[N, K\] with K > 0$"),
        (torch.zeros(4, 5, 2), torch.zeros(4, 5, 2), ValueError, r"^student_logits: got shape"),
        (torch.zeros(4, 0), torch.zeros(4, 0), ValueError, r"^student_logits: got shape"),
        (torch.zeros(4, 5).long(), torch.zeros(4, 5), TypeError, "^student_logits: got dtype"),
        (torch.zeros(4, 5), torch.zeros(4, 5).long(), TypeError, "^teacher_logits: got dtype"),
        (torch.zeros(4, 5), None, TypeError, "^teacher_logits: got NoneType"),
    ],
)  # fmt: skip
def test_wrong_logits(
    loss: Callable[..., Tensor],
    student: Tensor,
    teacher: Any,
    error: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        loss(student, teacher)


@of_logits
@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_wrong_temperatures(loss: Callable[..., Tensor], temperature: float) -> None:
    with pytest.raises(
        ValueError, match=r"^temperature: got .*; expected a finite number above 0$"
    ):
        loss(torch.zeros(4, 5), torch.zeros(4, 5), temperature=temperature)
    with pytest.raises(TypeError, match=r"^temperature: got str"):
        loss(torch.zeros(4, 5), torch.zeros(4, 5), temperature="4")


@pytest.mark.parametrize(
    ("lam", "sentence"),
    [
        (torch.full((4, 1), 0.5), r"^labels.lam: got shape \[4, 1\]; expected \[4\]"),
        (1.5, "^labels.lam: got 1.5; expected a share from 0 to 1$"),
        (torch.tensor(0.5, requires_grad=True), "^labels.lam: requires a gradient"),
    ],
)
def test_wrong_shares(lam: Any, sentence: str) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match=sentence):
        cross_entropy(torch.zeros(4, 5), ndfast.Mix(labels, labels, lam))


@pytest.mark.parametrize("at", ["target_a", "target_b"])
def test_probabilities_are_not_mixed(at: str) -> None:
    targets = dict.fromkeys(("target_a", "target_b"), torch.tensor([0, 1, 2, 3, 4]))
    targets[at] = torch.eye(5)  # as many rows as classes: these would be broadcast
    with pytest.raises(TypeError, match=rf"^labels.{at}: got dtype torch.float32; expected class"):
        cross_entropy(torch.zeros(5, 5), ndfast.Mix(**targets, lam=0.5))
