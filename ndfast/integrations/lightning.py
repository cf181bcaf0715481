"""NDDistillation: KD++ as a LightningModule. Written against Lightning 2.6."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import ndfast
from ndfast.integrations.features import ModuleInput
from ndfast.train.losses import kd_loss

_TEACHER = "teacher."


class NDDistillation(LightningModule):
    """Trains a student by cross entropy, KD and the ND loss; subclass it for the optimizer.

    Each step logs the total "train/loss" and its parts "train/ce", "train/kd" and "train/nd", and
    of `ndfast.NDStats` "train/cosine", "train/norm_ratio" and "train/longer". They are 0-dim
    tensors, whose values Lightning asks for only every ``log_every_n_steps`` steps; between these
    nothing synchronises with a GPU.

    The teacher moves with the module and is left out of its checkpoints.

    Source: KD++, arXiv 2305.17007.

    Args:
        student: from images to logits [N, K]; what is trained.
        teacher: the same; it is frozen, and kept in evaluation mode.
        class_means: the teacher's mean feature of each class [K, D].
        classifier: name of the student's module whose input are the features.
        teacher_classifier: that of the teacher; by default the same name.
        projector: takes the student's features to the teacher's width, and is trained with it.
        nd_weight: the ND loss's factor.
        kd_weight: KD's factor.
        temperature: KD's.

    Raises:
        ValueError: a network has no module of the name given, or ``class_means`` is not [K, D].

    Examples:
        >>> class Distillation(NDDistillation):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.student.parameters(), lr=0.1)
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        class_means: Tensor,
        *,
        classifier: str = "fc",
        teacher_classifier: str | None = None,
        projector: nn.Module | None = None,
        nd_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.projector = nn.Identity() if projector is None else projector
        self.nd = ndfast.NDLoss(class_means, nd_weight)
        self.kd_weight = kd_weight
        self.temperature = temperature
        self._features = ModuleInput("classifier", student, classifier)
        self._teacher_features = ModuleInput(
            "teacher_classifier", teacher, teacher_classifier or classifier
        )

    def forward(self, images: Tensor) -> Tensor:
        """The student's logits [N, K]."""
        return self.student(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of images and labels, class indices [N] or probabilities [N, K]."""
        images, labels = batch
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        logits = self.student(images)
        features = self.projector(self._features.take())
        nd, stats = self.nd(features, self._teacher_features.take(), labels, return_stats=True)
        parts = {
            "ce": F.cross_entropy(logits, labels),
            "kd": self.kd_weight * kd_loss(logits, teacher_logits, self.temperature),
            "nd": nd,
        }
        loss = torch.stack(list(parts.values())).sum()
        logged = {"loss": loss, **parts, **stats._asdict()}
        self.log_dict({f"train/{name}": value.detach() for name, value in logged.items()})
        return loss

    def train(self, mode: bool = True) -> NDDistillation:
        """As `torch.nn.Module.train`, but for the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the teacher out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(_TEACHER)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the teacher that is there in its place, so that all else is loaded strictly."""
        own = self.teacher.state_dict(prefix=_TEACHER)
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}
