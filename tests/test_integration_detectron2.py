"""NDRCNN over a stand-in for detectron2, which does not install here."""

from __future__ import annotations

import copy
import pickle
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import detectron2_stand_in as stand_in
import pytest
import torch
import yaml
from detectron2_stand_in import D, Instances, K
from held_features import seen_by
from torch import Tensor

import ndfast
from ndfast.losses import kd_loss

EXAMPLES = Path(__file__).parents[1] / "examples/detectron2"


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    stand_in.install(monkeypatch)
    name = "ndfast.integrations.detectron2"
    monkeypatch.delitem(sys.modules, name, raising=False)
    import ndfast.integrations.detectron2 as module

    yield module
    del sys.modules[name]  # it holds on to the stand-in


@pytest.fixture
def cfg(adapter: ModuleType, tmp_path: Path, seed: int) -> Any:
    """A student, and a teacher of other weights and another pixel mean."""
    (tmp_path / "teacher.yaml").write_text("7")
    teacher = stand_in.build_model(stand_in.get_cfg())
    torch.save({k: v + 0.1 for k, v in teacher.state_dict().items()}, tmp_path / "teacher.pth")
    means = torch.randn(K + 1, D)
    ndfast.save_class_means(tmp_path / "means.safetensors", means)
    cfg = stand_in.get_cfg()
    adapter.add_nd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "NDRCNN"
    cfg.ND.TEACHER_CONFIG = str(tmp_path / "teacher.yaml")
    cfg.ND.TEACHER_WEIGHTS = str(tmp_path / "teacher.pth")
    cfg.ND.CLASS_MEANS = str(tmp_path / "means.safetensors")
    return cfg


def batch(labels: list[list[int]]) -> list[dict[str, Any]]:
    return [
        {
            "image": torch.randn(3, 8, 8),
            "instances": Instances(labels=torch.tensor(own, dtype=torch.int64)),
        }
        for own in labels
    ]


def of_boxes(model: Any, images: list[dict[str, Any]], rows: list[int]) -> tuple[Tensor, Tensor]:
    """Features and logits of the first boxes of each image, written out."""
    tensor = torch.stack([image["image"] for image in images]) - model.pixel_mean
    maps = -model.backbone.conv(tensor)
    crops = [
        own[:, top:bottom, left:right].mean(dim=(1, 2))
        for own, n in zip(maps, rows, strict=True)
        for left, top, right, bottom in stand_in.BOXES[:n].tolist()
    ]
    features = model.roi_heads.box_head.fc(torch.stack(crops))
    return features, model.roi_heads.box_predictor.cls_score(features)


@pytest.mark.parametrize("background", [True, False])
def test_losses_of_the_students_proposals(cfg: Any, background: bool) -> None:
    cfg.ND |= {"ND_WEIGHT": 1.5, "KD_WEIGHT": 0.7, "TEMPERATURE": 2.0, "BACKGROUND": background}
    student = stand_in.build_model(cfg)
    images = batch([[0, K, 2], [K, 1]])
    losses = student(images)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_kd", "loss_nd"}
    assert student.roi_heads.box_head.calls == 1

    (teacher,) = student._teacher
    assert teacher.pixel_mean == pytest.approx(0.7)
    features, logits = of_boxes(student, images, [3, 2])
    teacher_features, teacher_logits = of_boxes(teacher, images, [3, 2])
    labels = torch.tensor([0, K, 2, K, 1])
    counted = torch.ones(5, dtype=torch.bool) if background else labels < K
    expected = ndfast.nd_loss(
        features[counted],
        teacher_features[counted],
        ndfast.load_class_means(cfg.ND.CLASS_MEANS),
        labels[counted],
        weight=1.5,
    )
    torch.testing.assert_close(losses["loss_nd"], expected)
    torch.testing.assert_close(losses["loss_kd"], 0.7 * kd_loss(logits, teacher_logits, 2.0))
    (gradient,) = torch.autograd.grad(losses["loss_nd"], student.backbone.conv.weight)
    (wanted,) = torch.autograd.grad(expected, student.backbone.conv.weight)
    torch.testing.assert_close(gradient, wanted)


def test_the_teacher_is_frozen_and_in_no_checkpoint(cfg: Any) -> None:
    student = stand_in.build_model(cfg)
    (teacher,) = student._teacher
    expected = torch.load(cfg.ND.TEACHER_WEIGHTS, weights_only=True)
    torch.testing.assert_close(dict(teacher.state_dict()), expected)
    student.train()
    assert not any(part.training for part in teacher.modules())
    sum(student(batch([[0], [1]])).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    plain = stand_in.GeneralizedRCNN(stand_in.get_cfg())
    assert student.state_dict().keys() == plain.state_dict().keys() | {"nd.class_means"}


def test_without_proposals_and_without_foreground(cfg: Any) -> None:
    student = stand_in.build_model(cfg)
    losses = student(batch([[], []]))
    assert losses["loss_nd"] == 0
    assert losses["loss_kd"] == 0
    weight = student.roi_heads.box_predictor.cls_score.weight
    (gradient,) = torch.autograd.grad(losses["loss_kd"], weight, retain_graph=True)
    assert torch.equal(gradient, torch.zeros_like(weight))
    sum(losses.values()).backward()
    cfg.ND.BACKGROUND = False
    losses = stand_in.build_model(cfg)(batch([[K, K], [K]]))
    assert losses["loss_nd"] == 0
    assert losses["loss_kd"] > 0


def test_inference_is_the_students(cfg: Any) -> None:
    student = stand_in.build_model(cfg).eval()
    student._teacher = ()  # asking it is an error
    assert student(batch([[0]])) == ["detections"]


def test_the_heads_stay_ordinary(cfg: Any) -> None:
    student = stand_in.build_model(cfg)
    heads = student.roi_heads
    images = batch([[0, K, 2], [K, 1]])
    with seen_by(heads.box_predictor, student._teacher[0].roi_heads.box_predictor) as seen:
        sum(student(images).values()).backward()
        heads.box_predictor(torch.randn(2, D))
        proposals = [Instances(proposal_boxes=stand_in.BOXES) for _ in images]
        objects = [image["instances"] for image in images]
        maps = student.backbone(student.preprocess_image(images).tensor)
        heads(None, maps, proposals, objects)
        student.roi_heads.box_predictor.bbox_pred = None
        with pytest.raises(TypeError):
            student(images)
        del maps
        assert (len(seen), seen.held()) == (5, 0)
    for module in (heads, heads.box_predictor):
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
    copy.deepcopy(student)
    pickle.loads(pickle.dumps(heads))


def test_what_does_not_fit(cfg: Any, adapter: ModuleType) -> None:
    arguments = adapter.NDRCNN.from_config(cfg)
    with pytest.raises(ValueError, match="class_means: got 3 rows; for 3 classes expected 4"):
        adapter.NDRCNN(**arguments | {"class_means": torch.randn(K, D)})
    heads = stand_in.StandardROIHeads()
    heads.box_head = torch.nn.ModuleList([heads.box_head] * 3)  # as CascadeROIHeads has it
    with pytest.raises(ValueError, match=r"ROI_HEADS\.NAME: got StandardROIHeads; NDRCNN takes"):
        adapter.NDRCNN(**arguments | {"roi_heads": heads})
    heads = stand_in.StandardROIHeads(train_on_pred_boxes=True)
    with pytest.raises(ValueError, match="TRAIN_ON_PRED_BOXES: got True; NDRCNN takes False"):
        adapter.NDRCNN(**arguments | {"roi_heads": heads})


def test_example_config(adapter: ModuleType) -> None:
    example = yaml.safe_load((EXAMPLES / "kdpp_R50_R101.yaml").read_text())
    cfg = stand_in.get_cfg()
    adapter.add_nd_config(cfg)
    assert example["ND"].keys() <= cfg.ND.keys()
    assert example["MODEL"]["META_ARCHITECTURE"] in stand_in.META_ARCH_REGISTRY


def test_example_of_class_means(adapter: ModuleType, seed: int) -> None:
    example = runpy.run_path(str(EXAMPLES / "class_means.py"))
    teacher = stand_in.GeneralizedRCNN(stand_in.get_cfg()).eval()
    batches = [batch([[0, K, 2], [K, 1]]), batch([[1, 1, K], [K]])]
    means = example["take_class_means"](teacher, batches)
    features = torch.cat(
        [of_boxes(teacher, batches[0], [3, 2])[0], of_boxes(teacher, batches[1], [3, 1])[0]]
    )
    labels = torch.tensor([0, K, 2, K, 1, 1, 1, K, K])
    expected = torch.stack([features[labels == k].mean(dim=0) for k in range(K + 1)])
    torch.testing.assert_close(means.compute(), expected.detach())
    assert means.counts.tolist() == [1, 3, 1, 4]
