"""torchvision's Faster R-CNN as a detector of the harness."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

pytest.importorskip("torchvision_ops", reason="needs torchvision")

from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.detector import BoxOutput, Target
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.detection.run import build_detector, run
from ndfast.train.detection.torchvision_detector import TorchvisionDetector
from ndfast.train.errors import ConfigError

NAME = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
K = 3


def detector(min_size: int = 64) -> TorchvisionDetector:
    config = DetectionConfig(model=NAME, rows=16, min_size=min_size)
    found = build_detector(config, NAME, K)
    assert isinstance(found, TorchvisionDetector)
    # Quick, where suppression is plain Python.
    found.rpn._pre_nms_top_n = found.rpn._post_nms_top_n = {"training": 40, "testing": 40}
    return found


def some_images() -> tuple[list[Tensor], list[Target]]:
    """Of different sizes; the second has no object."""
    boxes = torch.tensor([[5.0, 5, 20, 20], [30, 30, 50, 60]])
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 80)]
    return images, [Target(boxes, torch.tensor([2, 0])), nothing]


def whole(found: TorchvisionDetector) -> GeneralizedRCNN:
    """The detector as torchvision itself runs it."""
    network = GeneralizedRCNN(found.backbone, found.rpn, found.roi_heads, found.transform)
    return network.train(found.training)


def test_parameters_have_torchvisions_names() -> None:
    theirs = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=K + 1
    )
    detector().load_state_dict(theirs.state_dict())


def test_the_losses_are_torchvisions(seed: int) -> None:
    found, (images, targets) = detector().train(), some_images()
    torch.manual_seed(seed)  # it decides which rows are sampled
    expected = whole(found)(
        images, [{"boxes": boxes, "labels": labels + 1} for boxes, labels in targets]
    )
    torch.manual_seed(seed)
    maps = found.encode(images)
    rows, losses = found.sample(maps, targets)
    output = found.read(maps, rows.boxes)
    losses |= found.losses(output, rows)
    assert output.features.shape == (len(rows.labels), 1024)
    assert output.logits.shape == (len(rows.labels), K + 1)
    names = {"loss_classifier": "classification", "loss_box_reg": "regression"}
    for name, value in expected.items():
        # Boxes go to pixels of the images and back.
        torch.testing.assert_close(losses[names.get(name, name)], value, rtol=1e-3, atol=1e-5)


def test_background_is_the_last_class(seed: int) -> None:
    found, (images, targets) = detector().train(), some_images()
    rows, _ = found.sample(found.encode(images), targets)
    assert rows.labels.dtype == torch.int64
    first = len(rows.boxes[0])
    nearest, overlap = box_math.match(rows.boxes[0], targets[0].boxes)
    expected = torch.where(overlap >= 0.5, targets[0].labels[nearest], K)
    assert rows.labels[:first].tolist() == expected.tolist()
    assert {0, 2, K} == set(expected.tolist())
    assert (rows.labels[first:] == K).all()
    found.eval().roi_heads.box_predictor.cls_score.bias.data = torch.tensor([9.0, 0, 3, 1])
    found.roi_heads.box_predictor.cls_score.weight.data.zero_()
    output = found.read(found.encode(images), rows.boxes)
    assert output.logits[0].tolist() == [0, 3, 1, 9]


@torch.no_grad()
def test_detections_are_torchvisions(seed: int) -> None:
    found, (images, _) = detector().eval(), some_images()
    for ours, theirs in zip(found.detect(images), whole(found)(images), strict=True):
        assert len(ours.scores) > 0
        torch.testing.assert_close(ours.boxes, theirs["boxes"])
        assert ours.labels.tolist() == (theirs["labels"] - 1).tolist()
        assert torch.equal(ours.scores, theirs["scores"])


def test_a_teacher_sees_the_students_proposals(seed: int) -> None:
    config = DetectionConfig(model=NAME, nd_background=False)
    student, teacher = detector().train(), detector(min_size=96).eval().requires_grad_(False)
    distiller = DetectionDistiller(student, "kd++", config, torch.rand(K + 1, 1024))
    seen: list[Any] = []
    for model in (student, teacher):
        read, pool = model.read, model.roi_heads.box_roi_pool.forward

        def recorded(maps: Any, boxes: Any, read: Any = read) -> BoxOutput:
            seen.append(boxes)
            return read(maps, boxes)

        def pooled(features: Any, boxes: Any, sizes: Any, pool: Any = pool) -> Tensor:
            seen.append((boxes, sizes))
            return pool(features, boxes, sizes)

        model.read, model.roi_heads.box_roi_pool.forward = recorded, pooled  # type: ignore
    images, targets = some_images()
    losses = distiller(images, targets, teacher)
    asked, (own, sizes), asked_again, (others, other_sizes) = seen
    assert all(map(torch.equal, asked, asked_again))
    # Each in pixels of what it has resized the images to.
    assert (sizes, other_sizes) == ([(64, 64), (64, 102)], [(96, 96), (96, 153)])
    for boxes, resized in zip(own, others, strict=True):
        torch.testing.assert_close(1.5 * boxes, resized, rtol=1e-4, atol=1e-3)
    for loss in losses.values():
        assert loss.isfinite()
    losses["nd"].backward()
    assert student.backbone.body["0"][0].weight.grad is not None


def test_a_batch_without_foreground_trains_on(seed: int) -> None:
    config = DetectionConfig(model=NAME, nd_background=False)
    distiller = DetectionDistiller(detector(), "kd++", config, torch.rand(K + 1, 1024)).train()
    images, targets = some_images()
    losses = distiller(images, [targets[1]] * 2, detector().eval())
    assert losses["nd"].item() == losses["regression"].item() == 0
    torch.stack([*losses.values()]).sum().backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in distiller.parameters()
    )


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dim: torchvision:.* has 1024 box features, tiny 128;"):
        run(
            DetectionConfig(model=NAME, teacher="tiny", images=12, out=str(tmp_path)),
            Console(quiet=True),
        )
    for name in ("fasterrcnn_resnet9000", "retinanet_resnet50_fpn", ""):
        with pytest.raises(ConfigError, match=f"model: got 'torchvision:{name}'; expected torchv"):
            TorchvisionDetector(name, K, 16, 64)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError):
        TorchvisionDetector("fasterrcnn_resnet50_fpn", K, 16, 64)
