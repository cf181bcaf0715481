"""The training of a `DetectionDistiller`: its losses."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.detection.batches import move
from ndfast.train.detection.coco import DetectionData
from ndfast.train.detection.detector import Detector, Target
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.distill.evaluation import share_buffers
from ndfast.train.engine.loop import TrainingLoop


class DetectionTrainer(TrainingLoop):
    """Trains a distiller's student; see `TrainingLoop`.

    The teacher is on the device and in evaluation mode; its time is in the step's part "forward".
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: DetectionConfig,
        data: DetectionData,
        distiller: DetectionDistiller,
        teacher: Detector | None,
    ) -> None:
        super().__init__(accelerator, config, data, distiller)
        self.teacher = teacher

    def losses(
        self, batch: tuple[list[Tensor], list[Target]], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a batch's losses, and each of them; they have their factors."""
        images, targets = move(*batch, self.accelerator.device)
        with self.stopwatch.part("forward"):
            parts = self.model(images, targets, self.teacher)
            total = torch.stack([*parts.values()]).sum()
        return total, {name: value.detach() for name, value in parts.items()}

    def test(self) -> dict[str, Any]:
        """Nothing: a detector is tested once it is trained; see `TrainingLoop.test`."""
        share_buffers(self.model)  # a teacher is the same in every process
        return {}
