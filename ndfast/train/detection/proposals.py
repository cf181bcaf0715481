"""A region proposal network: where there may be an object, of whatever class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.detector import Target

_RATIOS = (0.5, 1.0, 2.0)  # height to width
_ROWS, _SHARE = 64, 0.5
_OBJECT, _NO_OBJECT = 0.7, 0.3
_BEFORE_NMS, _OVERLAP = 200, 0.7


class RegionProposals(nn.Module):
    """Faster R-CNN's region proposal network on one feature map.

    Source: Ren et al., arXiv 1506.01497, section 3.1, with its thresholds of overlap.

    Args:
        channels: C of the map.
        stride: pixels of the image from one position of the map to the next.
        sizes: of the anchors, in pixels: the root of their area.
        most: proposals an image.
    """

    def __init__(self, channels: int, stride: int, sizes: Sequence[int], most: int) -> None:
        super().__init__()
        self.stride = stride
        self.most = most
        shapes = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in _RATIOS]
        self.register_buffer("shapes", torch.tensor(shapes), persistent=False)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(shapes), 1)
        self.offsets = nn.Conv2d(channels, 4 * len(shapes), 1)

    shapes: Tensor

    def forward(
        self, maps: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The proposals of each image, and their losses if there are targets.

        Args:
            maps: [B, C, h, w].
            sizes: (H, W) of each image.
            targets: the objects in each image; None for no losses.

        Returns:
            Boxes [n, 4] for each image, without a gradient; "objectness" and "proposals".
        """
        hidden = F.relu(self.convolution(maps))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)
        offsets = self.offsets(hidden).permute(0, 2, 3, 1).reshape(len(maps), -1, 4)
        anchors = self._anchors(maps)
        with torch.no_grad():
            proposals = [
                self._propose(scores, found, anchors, size)
                for scores, found, size in zip(logits, offsets, sizes, strict=True)
            ]
        if targets is None:
            return proposals, {}
        return proposals, self._losses(logits, offsets, anchors, targets)

    def _anchors(self, maps: Tensor) -> Tensor:
        """[h·w·A, 4], around the centre of each position's pixels."""
        rows, columns = (
            (torch.arange(length, device=maps.device) + 0.5) * self.stride
            for length in maps.shape[-2:]
        )
        centres = torch.cartesian_prod(rows, columns).flip(1)[:, None]
        half = self.shapes / 2
        return torch.cat((centres - half, centres + half), dim=2).reshape(-1, 4)

    def _propose(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> Tensor:
        best = logits.float().topk(min(_BEFORE_NMS, len(logits)))
        boxes = box_math.decode(offsets[best.indices].float(), anchors[best.indices])
        boxes = box_math.clip(boxes, *size)
        real = box_math.has_area(boxes)
        boxes, scores = boxes[real], best.values[real]
        return boxes[box_math.nms(boxes, scores, _OVERLAP)[: self.most]]

    def _losses(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        objectness, regression = logits.new_zeros(()), logits.new_zeros(())
        for scores, found, target in zip(logits, offsets, targets, strict=True):
            nearest, overlap = box_math.match(anchors, target.boxes)
            is_object = overlap >= _OBJECT
            if len(target.boxes):
                # An object that no anchor fits has the one that fits it best.
                is_object[box_math.iou(target.boxes, anchors).argmax(dim=1)] = True
            nothing = (overlap < _NO_OBJECT) & ~is_object
            rows = box_math.choose_rows(is_object, nothing, _ROWS, _SHARE)
            labels = is_object[rows].to(scores.dtype)
            objectness = objectness + F.binary_cross_entropy_with_logits(
                scores[rows], labels, reduction="sum"
            )
            rows = rows[is_object[rows]]
            wanted = box_math.encode(target.boxes[nearest[rows]], anchors[rows])
            regression = regression + F.smooth_l1_loss(
                found[rows], wanted, reduction="sum", beta=1 / 9
            )
        counted = _ROWS * len(targets)
        return {"objectness": objectness / counted, "proposals": regression / counted}
