"""torchvision's Faster R-CNNs as detectors of the harness."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndfast.train.detection.detector import BoxOutput, Detections, Detector, Rows, Target
from ndfast.train.errors import ConfigError, import_package


class Maps(NamedTuple):
    """What the backbone says of images that the detector has resized.

    Args:
        images: torchvision's ImageList.
        features: by level, [B, C, h, w].
        sizes: (H, W) of each image as it was given; ``images.image_sizes`` has those it has now.
    """

    images: Any
    features: dict[str, Tensor]
    sizes: list[tuple[int, int]]


class TorchvisionDetector(Detector):
    """One of torchvision's Faster R-CNNs; its parameters have torchvision's names.

    torchvision's class 0 is background, which is last here; so a checkpoint of torchvision's for
    K + 1 classes fits, if its classes come in the same order.

    Args:
        name: of torchvision's builder, such as fasterrcnn_resnet50_fpn.
        num_classes: K, without background.
        rows: most rows an image that the box head trains on.
        min_size: what an image's shorter side is resized to, in pixels.

    Raises:
        ConfigError: torchvision has no such Faster R-CNN, or does not fit the torch that is there.
        ModuleNotFoundError: torchvision is not installed.
    """

    def __init__(self, name: str, num_classes: int, rows: int, min_size: int) -> None:
        super().__init__()
        import_package("torchvision")
        from torchvision.models import detection, get_model, list_models

        names = [n for n in list_models(module=detection) if n.startswith("fasterrcnn")]
        if name not in names:
            raise ConfigError(
                f"model: got 'torchvision:{name}'; expected torchvision: and one of "
                f"{', '.join(names)}"
            )
        network = get_model(
            name,
            weights=None,
            weights_backbone=None,
            num_classes=num_classes + 1,
            box_batch_size_per_image=rows,
            min_size=min_size,
        )
        self.transform = network.transform
        self.backbone = network.backbone
        self.rpn = network.rpn
        self.roi_heads = network.roi_heads
        self.num_classes = num_classes
        self.dim = network.roi_heads.box_predictor.cls_score.in_features

    def encode(self, images: list[Tensor]) -> Maps:
        """See `Detector.encode`."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        resized, _ = self.transform(images)
        return Maps(resized, self.backbone(resized.tensors), sizes)

    def sample(self, maps: Maps, targets: list[Target]) -> tuple[Rows, dict[str, Tensor]]:
        """See `Detector.sample`; the losses are "loss_objectness" and "loss_rpn_box_reg"."""
        objects = [
            {"boxes": boxes, "labels": target.labels + 1}
            for boxes, target in zip(
                self._enter(maps, [target.boxes for target in targets]), targets, strict=True
            )
        ]
        proposals, losses = self.rpn(maps.images, maps.features, objects)
        chosen, _, labels, offsets = self.roi_heads.select_training_samples(proposals, objects)
        rows = torch.cat(labels)
        rows = torch.where(rows == 0, self.num_classes, rows - 1)
        return Rows(self._leave(maps, chosen), rows, torch.cat(offsets)), losses

    def read(self, maps: Maps, boxes: list[Tensor]) -> BoxOutput:
        """See `Detector.read`; the offsets are [N, 4·(K + 1)], background first."""
        heads = self.roi_heads
        own = self._enter(maps, boxes)
        features = heads.box_head(heads.box_roi_pool(maps.features, own, maps.images.image_sizes))
        logits, offsets = heads.box_predictor(features)
        return BoxOutput(features, logits.roll(-1, dims=1), offsets)

    def losses(self, output: BoxOutput, rows: Rows) -> dict[str, Tensor]:
        """See `Detector.losses`."""
        from torchvision.models.detection.roi_heads import fastrcnn_loss

        labels = (rows.labels + 1) % (self.num_classes + 1)
        classification, regression = fastrcnn_loss(
            output.logits.roll(1, dims=1), output.offsets, [labels], [rows.offsets]
        )
        return {"classification": classification, "regression": regression}

    def detect(self, images: list[Tensor]) -> list[Detections]:
        """See `Detector.detect`."""
        maps = self.encode(images)
        proposals, _ = self.rpn(maps.images, maps.features)
        found, _ = self.roi_heads(maps.features, proposals, maps.images.image_sizes)
        return [
            Detections(boxes, own["labels"] - 1, own["scores"])
            for boxes, own in zip(
                self._leave(maps, [own["boxes"] for own in found]), found, strict=True
            )
        ]

    def _enter(self, maps: Maps, boxes: list[Tensor]) -> list[Tensor]:
        """Boxes from pixels of the images as they were given to those as they were resized."""
        return _resize(boxes, maps.sizes, maps.images.image_sizes)

    def _leave(self, maps: Maps, boxes: list[Tensor]) -> list[Tensor]:
        return _resize(boxes, maps.images.image_sizes, maps.sizes)


def _resize(
    boxes: list[Tensor], before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> list[Tensor]:
    from torchvision.models.detection.transform import resize_boxes

    return [resize_boxes(own, b, a) for own, b, a in zip(boxes, before, after, strict=True)]
