"""The ND loss on box features: its gradient, its proposals, batches without foreground."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_detection import D, K, batch, detector, small_config, teacher
from torch import Tensor

from ndfast.train.detection.detector import BoxOutput, Rows
from ndfast.train.detection.distiller import DetectionDistiller


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kinds", ["both", "no background", "no foreground"])
def test_the_gradient_is_the_definitions(
    kinds: str, background: bool, backend: str | None, seed: int
) -> None:
    config = small_config(nd_background=background, nd_weight=1.5, backend=backend)
    means = torch.randn(K + 1, D)
    distiller = DetectionDistiller(detector(), "kd++", config, means)
    for count in (37, 5):  # a different number of rows in every step
        labels = torch.randint(K, (count,))
        if kinds != "no background":
            labels[:: 1 if kinds == "no foreground" else 2] = K
        s, t = torch.randn(count, D).requires_grad_(), 0.8 * torch.randn(count, D)
        logits = torch.randn(count, K + 1)
        rows = Rows([torch.zeros(count, 4)], labels, torch.zeros(count, 4))
        losses = distiller.distil(BoxOutput(s, logits, logits), BoxOutput(t, logits, logits), rows)
        losses["nd"].backward()
        # DESIGN's formula, in float64.
        c = torch.nn.functional.normalize(means.double())[labels]
        student, norm_s, norm_t = s.detach().double(), s.norm(dim=1).double(), t.norm(dim=1)
        m, p = torch.maximum(norm_s, norm_t.double())[:, None], (student * c).sum(1, keepdim=True)
        longer = (norm_s >= norm_t)[:, None]
        expected = -c / m + longer * p / (m**2 * norm_s[:, None]) * student
        counted = (labels < K) | background
        denominator = max(int(counted.sum()), 1)
        expected = 1.5 * expected * counted[:, None] / denominator
        assert s.grad is not None
        torch.testing.assert_close(s.grad.double(), expected.detach(), rtol=1e-4, atol=1e-6)
        loss = (1.5 * (1 - p / m).flatten() * counted).sum() / denominator
        assert losses["nd"].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        assert losses["kd"].item() == pytest.approx(0, abs=1e-6)  # the same logits


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


@pytest.mark.parametrize("background", [True, False])
def test_a_batch_without_foreground_trains_on(background: bool, seed: int) -> None:
    config = small_config(nd_background=background)
    distiller = DetectionDistiller(detector(), "kd++", config, torch.rand(K + 1, D)).train()
    student, optimizer = distiller.student, torch.optim.SGD(distiller.parameters(), 0.01)
    changed = []
    for objects in ((0, 0, 0), (2, 0, 1)):
        before = {name: value.clone() for name, value in student.named_parameters()}
        losses = distiller(*batch(*objects), teacher())
        assert set(losses) == {
            "objectness", "proposals", "classification", "regression", "kd", "nd",
        }  # fmt: skip
        assert all(loss.isfinite() for loss in losses.values())
        if objects == (0, 0, 0):
            assert losses["regression"].item() == losses["proposals"].item() == 0
            nd = gradients(student, losses["nd"])
            assert any(grad.any() for grad in nd.values()) == background
            assert (losses["nd"].item() != 0) == background
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
        assert all(value.isfinite().all() for value in student.parameters())
        changed.append(
            {name for name, value in student.named_parameters() if (value != before[name]).any()}
        )
    everything = {name for name, _ in student.named_parameters()}
    boxes = {"offsets.weight", "offsets.bias"}
    proposals = {f"proposals.{name}" for name in boxes}
    assert changed == [everything - boxes - proposals, everything]


def test_a_batch_without_any_row_trains_on(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    distiller = DetectionDistiller(detector(), "kd++", small_config(), torch.rand(K + 1, D))
    none = Rows([torch.zeros(0, 4)] * 2, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    monkeypatch.setattr(distiller.student, "sample", lambda maps, targets: (none, {}))
    losses = distiller(*batch(1, 0), teacher())
    assert {name: loss.item() for name, loss in losses.items()} == {
        "classification": 0, "regression": 0, "kd": 0, "nd": 0,
    }  # fmt: skip
    for grad in gradients(distiller, torch.stack([*losses.values()]).sum()).values():
        assert not grad.any()


def test_teacher_and_student_see_the_same_proposals(seed: int) -> None:
    config = small_config()
    distiller = DetectionDistiller(detector(), "kd++", config, torch.rand(K + 1, D)).train()
    asked = teacher()
    seen: dict[str, list[Any]] = {"student": [], "teacher": []}
    for name, model in (("student", distiller.student), ("teacher", asked)):
        read = model.read

        def recorded(maps: Any, boxes: Any, name: str = name, read: Any = read) -> BoxOutput:
            seen[name].append((maps.sizes, boxes))
            return read(maps, boxes)

        model.read = recorded  # type: ignore[method-assign]
    counts = set()
    for objects in itertools.product(range(3), range(3)):
        images, targets = batch(*objects)
        losses = distiller(images, targets, asked)
        assert not losses["kd"].isnan()
        (sizes, student_boxes), (teacher_sizes, teacher_boxes) = (
            seen["student"][-1],
            seen["teacher"][-1],
        )
        assert sizes == teacher_sizes
        assert all(map(torch.equal, student_boxes, teacher_boxes))
        # They are the student's: the teacher would have proposed others.
        rows, _ = asked.sample(asked.encode(images), targets)
        assert rows.labels.shape != (0,)
        assert not all(map(torch.equal, rows.boxes, student_boxes))
        counts.add(sum(map(len, student_boxes)))
    assert all(not parameter.requires_grad for parameter in asked.parameters())
