"""A student detector and what a method has it learn from a teacher, in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ndfast
from ndfast.losses import kd_loss
from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.config.methods import METHODS
from ndfast.train.detection.detector import BoxOutput, Detector, Rows, Target

_NOTHING = -100


class DetectionDistiller(nn.Module):
    """A student whose forward gives its losses; the teacher sees the proposals of the student.

    Source: KD++ (arXiv 2305.17007); its authors' code compares logits and box-head features of the
    proposals that the student samples, background among them.

    Args:
        student: what is trained.
        method: "ce", "kd" or "kd++"; see `ndfast.train.config.methods.METHODS`.
        config: weights and temperature.
        class_means: of the teacher's box features [K + 1, D], background last; None for a method
            without the ND loss.
    """

    def __init__(
        self,
        student: Detector,
        method: str,
        config: DetectionConfig,
        class_means: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.method = METHODS[method]
        self.nd: ndfast.NDLoss | None = None
        if self.method.nd:
            assert class_means is not None
            self.nd = ndfast.NDLoss(
                class_means,
                config.nd_weight,
                ignore_index=_NOTHING if config.nd_background else student.num_classes,
                backend=config.backend,
            )

    def forward(
        self, images: list[Tensor], targets: list[Target], teacher: Detector | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch, each with its factor.

        Returns:
            0-dim: those of the student's proposals; "classification" and "regression"; and, by
            method, "kd" and "nd". All are finite where there is no foreground, and no row at all.
        """
        maps = self.student.encode(images)
        rows, losses = self.student.sample(maps, targets)
        output = self.student.read(maps, rows.boxes)
        losses = losses | self.student.losses(output, rows)
        if teacher is not None:
            with torch.no_grad():
                expected = teacher.read(teacher.encode(images), rows.boxes)
            losses |= self.distil(output, expected, rows)
        return losses

    def distil(self, student: BoxOutput, teacher: BoxOutput, rows: Rows) -> dict[str, Tensor]:
        """What both say of the same rows, compared: "kd" and "nd", by method."""
        losses = {}
        if self.method.distillation == "kd":
            kd = kd_loss(student.logits, teacher.logits, self.config.temperature)
            losses["kd"] = self.config.kd_weight * kd
        if self.nd is not None:
            losses["nd"] = self.nd(student.features, teacher.features, rows.labels)
        return losses
