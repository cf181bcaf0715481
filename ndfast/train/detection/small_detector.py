"""A small Faster R-CNN in plain PyTorch, for images of some hundred pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.detector import BoxOutput, Detections, Detector, Rows, Target
from ndfast.train.detection.proposals import RegionProposals

_STRIDE = 4
_POOLED = 5  # positions a side of the map that is cut out for a box
_FOREGROUND, _SHARE = 0.5, 0.25  # overlap from which a row is an object's; their share
_OFFSET_SCALES = (10.0, 10.0, 5.0, 5.0)  # as in Detectron, so that the offsets vary by about 1
_LEAST_SCORE, _OVERLAP, _MOST_DETECTIONS = 0.05, 0.5, 100


class Maps(NamedTuple):
    """Feature maps [B, C, h, w] of images that were padded to one size, and their (H, W) before."""

    features: Tensor
    sizes: list[tuple[int, int]]


class SmallDetector(Detector):
    """Convolutions of stride 4, a region proposal network, RoIAlign, two fully connected layers.

    Source: Ren et al., "Faster R-CNN", arXiv 1506.01497; the box head is the one of Lin et al.,
    "Feature Pyramid Networks", arXiv 1612.03144, whose second layer gives the features.

    Args:
        num_classes: K, without background.
        width: channels of the first layer; the others have two and four times as many.
        dim: D, the box head's width.
        rows: most rows an image that the box head trains on, as many proposals there are at most.
        anchor_sizes: in pixels.
    """

    def __init__(
        self, num_classes: int, width: int, dim: int, rows: int, anchor_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.num_classes, self.dim, self.rows = num_classes, dim, rows
        channels = 4 * width
        self.backbone = nn.Sequential(
            _block(3, width, stride=2),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 2 * width, stride=1),
            _block(2 * width, channels, stride=1),
        )
        self.proposals = RegionProposals(channels, _STRIDE, anchor_sizes, rows)
        self.box_head = nn.Sequential(
            nn.Linear(channels * _POOLED**2, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        )
        self.classifier = nn.Linear(dim, num_classes + 1)
        self.offsets = nn.Linear(dim, 4)
        self.register_buffer("scales", torch.tensor(_OFFSET_SCALES), persistent=False)

    scales: Tensor

    def encode(self, images: list[Tensor]) -> Maps:
        """See `Detector.encode`."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (-(-max(sides) // _STRIDE) * _STRIDE for sides in zip(*sizes, strict=True))
        padded = [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=0.5)
            for image in images
        ]
        return Maps(self.backbone(4 * torch.stack(padded) - 2), sizes)

    def sample(self, maps: Maps, targets: list[Target]) -> tuple[Rows, dict[str, Tensor]]:
        """See `Detector.sample`; the losses are "objectness" and "proposals"."""
        proposals, losses = self.proposals(
            maps.features, maps.sizes, targets if self.training else None
        )
        chosen, labels, offsets = zip(*map(self._sample_image, proposals, targets), strict=True)
        return Rows(list(chosen), torch.cat(labels), torch.cat(offsets)), losses

    def _sample_image(self, proposals: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        # The objects themselves too, so that there is foreground from the first step on.
        boxes = torch.cat((proposals, target.boxes))
        nearest, overlap = box_math.match(boxes, target.boxes)
        foreground = overlap >= _FOREGROUND
        rows = box_math.choose_rows(foreground, ~foreground, self.rows, _SHARE)
        boxes, nearest, foreground = boxes[rows], nearest[rows], foreground[rows]
        labels = torch.full_like(nearest, self.num_classes)
        labels[foreground] = target.labels[nearest[foreground]]
        offsets = torch.zeros_like(boxes)
        objects = target.boxes[nearest[foreground]]
        offsets[foreground] = box_math.encode(objects, boxes[foreground]) * self.scales
        return boxes, labels, offsets

    def read(self, maps: Maps, boxes: list[Tensor]) -> BoxOutput:
        """See `Detector.read`; the offsets are [N, 4], whatever the class."""
        pooled = torch.cat(
            [_pool(features, own) for features, own in zip(maps.features, boxes, strict=True)]
        )
        features = self.box_head(pooled.flatten(1))
        return BoxOutput(features, self.classifier(features), self.offsets(features))

    def losses(self, output: BoxOutput, rows: Rows) -> dict[str, Tensor]:
        """See `Detector.losses`; both are 0 without rows."""
        counted = max(len(rows.labels), 1)
        classification = F.cross_entropy(output.logits.float(), rows.labels, reduction="sum")
        foreground = rows.labels < self.num_classes
        regression = F.smooth_l1_loss(
            output.offsets[foreground].float(), rows.offsets[foreground], reduction="sum"
        )
        return {"classification": classification / counted, "regression": regression / counted}

    def detect(self, images: list[Tensor]) -> list[Detections]:
        """See `Detector.detect`."""
        maps = self.encode(images)
        proposals, _ = self.proposals(maps.features, maps.sizes, None)
        output = self.read(maps, proposals)
        counts = [len(boxes) for boxes in proposals]
        logits = output.logits.float().split(counts)
        offsets = output.offsets.float().split(counts)
        return [*map(self._detect_image, proposals, logits, offsets, maps.sizes)]

    def _detect_image(
        self, proposals: Tensor, logits: Tensor, offsets: Tensor, size: tuple[int, int]
    ) -> Detections:
        boxes = box_math.clip(box_math.decode(offsets / self.scales, proposals), *size)
        scores = logits.softmax(dim=1)[:, : self.num_classes]
        rows, labels = ((scores > _LEAST_SCORE) & box_math.has_area(boxes)[:, None]).nonzero().T
        boxes, scores = boxes[rows], scores[rows, labels]
        # Classes side by side, so that no box suppresses one of another class.
        apart = boxes + (labels * 2.0 * max(size))[:, None]
        kept = box_math.nms(apart, scores, _OVERLAP)[:_MOST_DETECTIONS]
        return Detections(boxes[kept], labels[kept], scores[kept])


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _pool(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign with one sample a bin: [C, h, w] and [n, 4] to [n, C, P, P]."""
    height, width = (_STRIDE * length for length in features.shape[1:])
    steps = (torch.arange(_POOLED, device=boxes.device) + 0.5) / _POOLED
    xs, ys = (
        2 * (boxes[:, low, None] + (boxes[:, low + 2] - boxes[:, low])[:, None] * steps) / side - 1
        for low, side in ((0, width), (1, height))
    )
    grid = torch.stack(
        (xs[:, None, :].expand(-1, _POOLED, -1), ys[:, :, None].expand(-1, -1, _POOLED)), dim=3
    )
    # All boxes as one tall image: grid_sample takes one grid an image.
    tall = grid.reshape(1, -1, _POOLED, 2).to(features.dtype)
    sampled = F.grid_sample(features[None], tall, align_corners=False, padding_mode="border")
    return sampled[0].unflatten(1, (len(boxes), _POOLED)).transpose(0, 1)
