"""A teacher, its class means, and students of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ndfast
from ndfast.train.config import TrainConfig
from ndfast.train.data import Data
from ndfast.train.loop import EVALUATION_BATCH, evaluate, fit
from ndfast.train.losses import METHODS, kd_loss
from ndfast.train.models import ConvNet, Student

TEACHER_SEED = 0


class StudentRun(NamedTuple):
    """One training of one student."""

    losses: list[float]  # of each step
    curves: list[dict[str, float]]  # `ndfast.train.loop.METRICS` on the test set, by epoch
    parameters: Tensor  # flat, on the CPU


class Experiment:
    """Trains the teacher and takes its class means; then trains students, one at a call.

    Args:
        config: the run.
        data: what to train and test on.
        accelerator: the device and the processes.
        after_epoch: is called after each epoch of the teacher.

    Attributes:
        teacher: in evaluation mode, its parameters frozen.
        teacher_metrics: `ndfast.train.loop.METRICS` of the teacher on the test set.
        class_means: [K, D], of the teacher over the training set.
        counts: the images of each class in the training set, int64 [K].

    Raises:
        FloatingPointError: the teacher's training diverged.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        accelerator: Accelerator,
        after_epoch: Callable[[], None],
    ) -> None:
        self.config = config
        self.data = data
        self.accelerator = accelerator
        self._train_teacher(after_epoch)
        self._take_class_means()
        self.teacher_metrics = evaluate(accelerator, self.teacher, self.data.test, self.class_means)

    def train_student(
        self, method: str, seed: int, backend: str | None, after_epoch: Callable[[], None]
    ) -> StudentRun:
        """Trains and evaluates a student; the same arguments give the same student on the CPU.

        Without the ND loss the student gets a probe for a projector, so that every method's
        features are measured in the teacher's space, where the class means are.

        Args:
            method: a name in `ndfast.train.losses.METHODS`.
            seed: of the parameters, the dropout and the order of the images.
            backend: of the ND loss; None for the fastest that can run.
            after_epoch: is called after each epoch.

        Raises:
            FloatingPointError: the training diverged.
        """
        student = self.build_student(method, seed, probe=True)

        def loss_of(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
            return self.student_loss(method, model, images, target, backend)

        losses: list[float] = []
        curves: list[dict[str, float]] = []
        for epoch_losses in fit(
            self.accelerator, student, self.data.train, loss_of, self.config, seed
        ):
            losses += epoch_losses
            curves.append(evaluate(self.accelerator, student, self.data.test, self.class_means))
            after_epoch()
        parameters = nn.utils.parameters_to_vector(student.parameters()).detach().cpu()
        self.accelerator.free_memory()
        return StudentRun(losses, curves, parameters)

    def build_student(self, method: str, seed: int, probe: bool) -> nn.Module:
        """A fresh student on the device; ``probe`` gives one to a method without the ND loss."""
        set_seed(seed)
        student = Student(
            self._build_network(self.config.student_channels),
            self.config.student_channels[-1],
            self.config.teacher_channels[-1],
            "trained" if METHODS[method].nd else "probe" if probe else "none",
        )
        return self.accelerator.prepare(student)

    def student_loss(
        self, method: str, student: nn.Module, images: Tensor, target: Tensor, backend: str | None
    ) -> Tensor:
        """CE, and the KD and ND losses where the method or the student's probe has them."""
        features, logits = student(images)
        with torch.no_grad():
            teacher_features, teacher_logits = self.teacher(images)
        loss = F.cross_entropy(logits, target)
        if METHODS[method].kd:
            kd = kd_loss(logits, teacher_logits, self.config.temperature)
            loss = loss + self.config.kd_weight * kd
        if features is not None:
            loss = loss + ndfast.nd_loss(
                features,
                teacher_features,
                self.class_means,
                target,
                weight=self.config.nd_weight,
                backend=backend,
            )
        return loss

    def _build_network(self, channels: tuple[int, ...]) -> ConvNet:
        image_shape = tuple(self.data.train[0][0].shape)
        return ConvNet(image_shape, channels, self.data.num_classes, self.config.kernel_size)

    def _train_teacher(self, after_epoch: Callable[[], None]) -> None:
        def loss_of(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(model(images)[1], target)

        set_seed(TEACHER_SEED)
        teacher = self.accelerator.prepare(self._build_network(self.config.teacher_channels))
        for _ in fit(
            self.accelerator, teacher, self.data.train, loss_of, self.config, TEACHER_SEED
        ):
            after_epoch()
        # A frozen network has no use for the wrapper of several processes, which kept the running
        # statistics of batch normalisation the same in all of them.
        teacher = self.accelerator.unwrap_model(teacher)
        broadcast(list(teacher.buffers()))
        self.teacher = teacher.eval().requires_grad_(False)
        self.accelerator.free_memory()

    @torch.no_grad()
    def _take_class_means(self) -> None:
        means = ndfast.ClassMeans(self.data.num_classes, self.config.teacher_channels[-1])
        loader = self.accelerator.prepare(DataLoader(self.data.train, EVALUATION_BATCH))
        # gather_for_metrics rather than all_reduce: it leaves out the images that Accelerate
        # repeats to give every process as many.
        for images, target in loader:
            features, _ = self.teacher(images)
            means.update(*self.accelerator.gather_for_metrics((features, target)))
        self.class_means, self.counts = means.compute(), means.counts
