"""Boxes [n, 4] (left, top, right, bottom): overlap, offsets, suppression, choice of rows.

torchvision has most of it, and is not needed for the small detector, whose weights and figures are
those of just this arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_LOG_SCALE = math.log(1000 / 16)  # Detectron's bound, so that exp cannot overflow


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each of M boxes with each of N: [M, N], 0 where both are empty."""
    left_top = torch.maximum(boxes[:, None, :2], others[:, :2])
    right_bottom = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (right_bottom - left_top).clamp(min=0).prod(dim=2)
    union = _area(boxes)[:, None] + _area(others) - shared
    return shared / union.clamp(min=1e-9)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets [N, 4] that lead from anchors to boxes.

    Source: Ren et al., "Faster R-CNN", arXiv 1506.01497, equation 2.
    """
    (centres, sizes), (anchor_centres, anchor_sizes) = _centres(boxes), _centres(anchors)
    shifts = (centres - anchor_centres) / anchor_sizes
    return torch.cat((shifts, (sizes / anchor_sizes).log()), dim=1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The boxes [N, 4] that offsets lead to from anchors; undoes `encode`."""
    anchor_centres, anchor_sizes = _centres(anchors)
    centres = anchor_centres + offsets[:, :2] * anchor_sizes
    sizes = offsets[:, 2:].clamp(max=_MOST_LOG_SCALE).exp() * anchor_sizes
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """The part of each box that is in the image."""
    most = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(most)


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes are at least a hundredth of a pixel wide and high: bool [N]."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(dim=1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Returns:
        The rows [n] that stay, best first: no two overlap by more than ``threshold``.
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = (iou(boxes[order], boxes[order]) > threshold).cpu().numpy()
    suppressed = overlaps.diagonal() & False
    kept = []
    for row in range(len(order)):
        if not suppressed[row]:
            kept.append(row)
            suppressed |= overlaps[row]
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def match(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """The object that each box overlaps most, and by how much: int64 [N] and float [N].

    Without an object it is number 0, with an overlap of 0.
    """
    if len(objects) == 0 or len(boxes) == 0:
        return boxes.new_zeros(len(boxes), dtype=torch.int64), boxes.new_zeros(len(boxes))
    overlap, nearest = iou(boxes, objects).max(dim=1)
    return nearest, overlap


def choose_rows(foreground: Tensor, background: Tensor, most: int, share: float) -> Tensor:
    """At most ``most`` rows by chance, of which foreground is at most ``share``.

    Args:
        foreground: bool [N].
        background: bool [N].
        most: how many.
        share: from 0 to 1. Background does take the place of foreground that is missing.

    Returns:
        int64 [n], foreground first.
    """
    first = _shuffled(foreground)[: int(most * share)]
    return torch.cat((first, _shuffled(background)[: most - len(first)]))


def _shuffled(mask: Tensor) -> Tensor:
    rows = mask.nonzero().flatten()
    return rows[torch.randperm(len(rows), device=rows.device)]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [N, 2] and sizes [N, 2]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
