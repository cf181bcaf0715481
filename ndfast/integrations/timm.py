"""NDDistillationTask for timm's training tasks. Written against timm 1.0.31."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import FeatureDistillationTask
from torch import Tensor, nn

import ndfast
from ndfast.losses import kd_loss


class NDDistillationTask(FeatureDistillationTask):
    """KD++ as a task of timm: the task's loss, KD on the logits, the ND loss on the features.

    Targets are class indices or, under timm's Mixup and CutMix, class probabilities, whose class
    means are mixed likewise. Student and teacher of different widths get timm's own projection.

    Source: KD++, arXiv 2305.17007.

    Args:
        student_model: a model of timm's, what is trained.
        teacher_model: a name, a model or timm's DistillationTeacher.
        class_means: the teacher's mean feature of each class [K, D]: features as its
            ``forward_head(..., pre_logits=True)`` gives them.
        nd_loss_weight: the ND loss's factor.
        kd_loss_weight: KD's factor; 0 leaves it out.
        temperature: KD's.
        **kwargs: those of `timm.task.FeatureDistillationTask`; ``distill_loss_weight`` is not
            taken.

    Raises:
        TypeError: ``distill_loss_weight`` is given.
        ValueError: ``class_means`` is not [K, D].

    Examples:
        >>> task = NDDistillationTask(model, "resnet50", class_means, device=device)
        >>> task(images, targets)["loss"].backward()
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: str | nn.Module,
        class_means: Tensor,
        nd_loss_weight: float = 1.0,
        kd_loss_weight: float = 1.0,
        temperature: float = 4.0,
        **kwargs: Any,
    ) -> None:
        if "distill_loss_weight" in kwargs:
            raise TypeError("distill_loss_weight: give nd_loss_weight and kd_loss_weight")
        task_loss_weight = kwargs.pop("task_loss_weight", None)
        super().__init__(
            student_model,
            teacher_model,
            distill_loss_weight=nd_loss_weight,
            task_loss_weight=task_loss_weight,
            **kwargs,
        )
        self.nd = ndfast.NDLoss(class_means, nd_loss_weight).to(self.device)
        self.kd_loss_weight = kd_loss_weight
        self.temperature = temperature
        self._read = _read_teacher

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: Any) -> Any:
        """As timm's; the teacher is compiled with its logits."""
        self._read = torch.compile(_read_teacher, backend=backend, mode=mode, **kwargs)
        return super().compile(backend, mode, **kwargs)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            input: images [N, C, H, W], normalised for the student.
            target: class indices [N], or class probabilities [N, K].

        Returns:
            "loss", the total; "output", the student's logits [N, K]; "task_loss", without its
            factor; "nd_loss", and "kd_loss" where it is asked for, with theirs.
        """
        logits, features = self.trainable_module(input)
        with torch.no_grad():
            student: tuple[Any, Any] = self.student_mean, self.student_std
            images = self.teacher.normalize_input(input, *student)
            teacher_features, teacher_logits = self._read(
                self.teacher.model, images, self.kd_loss_weight != 0
            )
        found = {
            "output": logits,
            "task_loss": self.criterion(logits, target),
            "nd_loss": self.nd(features, teacher_features, target),
        }
        total = self.task_loss_weight * found["task_loss"] + found["nd_loss"]
        if teacher_logits is not None:
            kd = kd_loss(logits, teacher_logits, self.temperature)
            found["kd_loss"] = self.kd_loss_weight * kd
            total = total + found["kd_loss"]
        return {"loss": total, **found}


def _read_teacher(model: Any, images: Tensor, with_logits: bool) -> tuple[Tensor, Tensor | None]:
    """The teacher's features [N, D], and its logits [N, K] where KD takes them."""
    feature_map = model.forward_features(images)
    features = model.forward_head(feature_map, pre_logits=True)
    return features, model.forward_head(feature_map) if with_logits else None
