"""What a two-stage detector is to the harness: proposals, rows of them, and what its box head says.

Boxes are [n, 4] float32, left, top, right, bottom in pixels of the image as it was given. Labels
are int64: classes 0 to K-1, and K for background, as detectron2 and KD++'s class means have them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn


class Target(NamedTuple):
    """The objects in an image: boxes [n, 4] and labels [n]."""

    boxes: Tensor
    labels: Tensor


class Rows(NamedTuple):
    """The proposals of a batch that its box head trains on.

    Args:
        boxes: [n, 4] for each image.
        labels: [N] of all images, one after the other.
        offsets: [N, 4], from each box to the object's, as the detector encodes them; without
            meaning in rows of background.
    """

    boxes: list[Tensor]
    labels: Tensor
    offsets: Tensor


class BoxOutput(NamedTuple):
    """What a box head says of N boxes.

    Args:
        features: [N, D], what classifier and box regression read.
        logits: [N, K + 1], background last.
        offsets: what it would correct the boxes by.
    """

    features: Tensor
    logits: Tensor
    offsets: Tensor


class Detections(NamedTuple):
    """What is found in an image: boxes [n, 4], labels [n] without background, scores [n]."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Detector(nn.Module, ABC):
    """A detector, taken apart so that a teacher can be asked about a student's proposals.

    Attributes:
        num_classes: K, without background.
        dim: D.
    """

    num_classes: int
    dim: int

    @abstractmethod
    def encode(self, images: list[Tensor]) -> Any:
        """Feature maps of images [3, H, W] from 0 to 1, of any sizes; for the other methods."""

    @abstractmethod
    def sample(self, maps: Any, targets: list[Target]) -> tuple[Rows, dict[str, Tensor]]:
        """Rows of the detector's own proposals and of the targets' boxes.

        Returns:
            The rows, and, in training mode, the losses of the proposals.
        """

    @abstractmethod
    def read(self, maps: Any, boxes: list[Tensor]) -> BoxOutput:
        """What the box head says of the boxes [n, 4] of each image."""

    @abstractmethod
    def losses(self, output: BoxOutput, rows: Rows) -> dict[str, Tensor]:
        """The box head's "classification" and "regression", for what it said of the rows."""

    @abstractmethod
    def detect(self, images: list[Tensor]) -> list[Detections]:
        """What is found in each image, in evaluation mode."""
