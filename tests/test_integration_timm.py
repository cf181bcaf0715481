"""NDDistillationTask with models of timm."""

from __future__ import annotations

import copy
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # before timm
pytest.importorskip("timm", reason="needs timm")

import timm
from held_features import seen_by
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

import ndfast
from ndfast.integrations.timm import NDDistillationTask
from ndfast.losses import kd_loss

K, SIZE = 4, 64
EXAMPLE = Path(__file__).parents[1] / "examples/timm/train.py"


def networks(student: str = "test_resnet") -> tuple[nn.Module, nn.Module]:
    options: dict[str, Any] = {"num_classes": K, "drop_rate": 0.0}
    if "vit" in student:
        options["img_size"] = SIZE
    return timm.create_model(student, **options), timm.create_model("test_resnet", num_classes=K)


def read(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    feature_map = model.forward_features(images)
    return model.forward_head(feature_map), model.forward_head(feature_map, pre_logits=True)


@pytest.fixture
def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    dim = networks()[1].head_hidden_size
    return torch.randn(6, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 3, 1, 0]), torch.randn(K, dim)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kd_weight", [0.0, 0.5])
def test_the_losses(mixed: bool, kd_weight: float, batch: Any) -> None:
    images, target, class_means = batch
    criterion: nn.Module = nn.CrossEntropyLoss()
    if mixed:
        images, target = Mixup(mixup_alpha=1.0, num_classes=K)(images, target)
        criterion = SoftTargetCrossEntropy()
        assert target.shape == (6, K)
    student, teacher = networks()
    task = NDDistillationTask(
        student, teacher, class_means, nd_loss_weight=3.0, kd_loss_weight=kd_weight,
        temperature=2.0, criterion=criterion, task_loss_weight=0.7, verbose=False,
    ).train()  # fmt: skip
    found = task(images, target)
    with torch.no_grad():
        theirs, expected = read(teacher, images)
    logits, features = read(student, images)
    centres = target @ class_means if mixed else class_means[target]
    nd = 3 * ndfast.nd_loss(features, expected, centres, None, backend="reference")
    kd = kd_weight * kd_loss(logits, theirs, 2.0)
    ce = F.cross_entropy(logits, target)
    torch.testing.assert_close(found["nd_loss"], nd)
    torch.testing.assert_close(found["task_loss"], ce)
    torch.testing.assert_close(found["loss"], 0.7 * ce + nd + kd)
    assert ("kd_loss" in found) == (kd_weight > 0)
    found["loss"].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not task.teacher.training


def test_a_projection_where_the_widths_differ(batch: Any) -> None:
    images, target, class_means = batch
    student, teacher = networks("test_vit")
    assert student.num_features != teacher.head_hidden_size
    task = NDDistillationTask(student, teacher, class_means, verbose=False).train()
    task(images, target)["nd_loss"].backward()
    assert task.trainable_module.projection.weight.grad is not None
    assert task.get_task_state().keys() == {"projection"}


@torch.no_grad()
def test_compiled_as_eager(batch: Any) -> None:
    images, target, class_means = batch
    task = NDDistillationTask(*networks(), class_means, verbose=False).eval()
    expected = task(images, target)
    task.compile(backend="eager")
    torch.testing.assert_close(task(images, target), expected, msg="compiled")
    twin = copy.deepcopy(task)
    for parameter in twin.teacher.parameters():
        parameter.zero_()
    assert not torch.equal(twin(images, target)["kd_loss"], expected["kd_loss"])


def test_copies_and_what_is_held(batch: Any) -> None:
    images, target, class_means = batch
    student, teacher = networks()
    student.set_grad_checkpointing()
    task = NDDistillationTask(student, teacher, class_means, verbose=False).train()
    average = task.setup_ema(decay=0.5)
    before = student.fc.weight.detach().clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with seen_by(student.fc, teacher.fc) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            task(images, target)["loss"].backward()
            optimizer.step()
        assert len(seen) > 2
        assert seen.held() == 0
    student(images)  # of the user's own
    task.update_ema()
    torch.testing.assert_close(
        average.module.student.fc.weight, (before + student.fc.weight.detach()) / 2
    )
    expected = task.eval()(images, target)["loss"]
    for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert twin.teacher is not task.teacher
        torch.testing.assert_close(twin(images, target)["loss"], expected)


def test_timms_own_factor_is_not_taken(batch: Any) -> None:
    with pytest.raises(TypeError, match="distill_loss_weight: give nd_loss_weight and"):
        NDDistillationTask(*networks(), batch[2], distill_loss_weight=2.0)


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 10
