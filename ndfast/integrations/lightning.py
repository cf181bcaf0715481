"""NDDistillation: KD++ as a LightningModule. Written against Lightning 2.6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import ndfast
from ndfast.integrations.features import classifiers_of
from ndfast.losses import kd_loss


class NDDistillation(LightningModule):
    """Trains a student by cross entropy, KD and the ND loss; subclass it for the optimizer.

    Each step logs the total "train/loss" and its parts "train/ce", "train/kd" and "train/nd", and
    of `ndfast.NDStats` "train/cosine", "train/norm_ratio" and "train/fraction_student_longer". They
    are 0-dim tensors, whose values Lightning asks for only every ``log_every_n_steps`` steps;
    between these nothing synchronises with a GPU.

    The teacher moves with the module, but is no submodule. So it is in no checkpoint, and what goes
    over the module's parameters and modules leaves it as it is: an optimizer, ``unfreeze``, and the
    callbacks that average weights. WeightAveraging, EMAWeightAveraging and
    StochasticWeightAveraging average the student, the projector and class means that are learnt,
    and the copies that they make of the module can train as it does, each with a teacher of its
    own.

    Between steps the networks have no hooks, and nothing of a batch is held.

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
        ValueError: a network has no module of the name given, ``class_means`` is not [K, D], or the
            teacher is the student itself.

    Examples:
        >>> class Distillation(NDDistillation):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.student.parameters(), lr=0.1)
    """

    teacher: nn.Module

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
        self._classifier, self._teacher_classifier = classifiers_of(
            student, classifier, teacher, teacher_classifier
        )
        self.student = student
        self.teacher = teacher
        self.projector = nn.Identity() if projector is None else projector
        self.nd = ndfast.NDLoss(class_means, nd_weight)
        self.kd_weight = kd_weight
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """The student's logits [N, K]."""
        return self.student(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of images and labels, class indices [N] or probabilities [N, K]."""
        images, labels = batch
        with torch.no_grad():
            teacher_logits, teacher_features = self._teacher_classifier.read(
                self.teacher, self.teacher, images
            )
        logits, features = self._classifier.read(self.student, self.student, images)
        features = self.projector(features)
        nd, stats = self.nd(features, teacher_features, labels, return_stats=True)
        parts = {
            "ce": F.cross_entropy(logits, labels),
            "kd": self.kd_weight * kd_loss(logits, teacher_logits, self.temperature),
            "nd": nd,
        }
        loss = torch.stack(list(parts.values())).sum()
        logged = {"loss": loss, **parts, **stats._asdict()}
        self.log_dict({f"train/{name}": value.detach() for name, value in logged.items()})
        return loss

    def __setattr__(self, name: str, value: Any) -> None:
        """As `torch.nn.Module.__setattr__`; a teacher is frozen, and becomes no submodule."""
        if name == "teacher":
            object.__setattr__(self, name, value.requires_grad_(False).eval())
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NDDistillation:
        """What `torch.nn.Module` moves and casts by; the teacher goes along."""
        if recurse:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def on_fit_start(self) -> None:
        """Moves the teacher where the strategy moves none but submodules, as FSDP's does."""
        self.teacher.to(self.trainer.strategy.root_device)
