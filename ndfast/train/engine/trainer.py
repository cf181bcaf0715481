"""The training of a `Distiller`, a classifier: its losses and its tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

import ndfast
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import Data
from ndfast.train.data.batches import mix_seeds
from ndfast.train.data.mixing import Mixer
from ndfast.train.distill.distiller import Distiller
from ndfast.train.distill.evaluation import evaluate, move, place, share_buffers
from ndfast.train.distill.kept_outputs import as_output
from ndfast.train.distill.teacher import Teacher
from ndfast.train.engine.loop import TrainingLoop
from ndfast.train.engine.loss_check import LossCheck

MIXING = 1  # sets the seeds of mixup and cutmix apart from those of the batches


class Trainer(TrainingLoop):
    """Trains a distiller; see `TrainingLoop`.

    Without a teacher the method has none, and nothing is measured against one.
    """

    config: TrainConfig

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        data: Data,
        distiller: Distiller,
        teacher: Teacher | None,
    ) -> None:
        self.teacher = teacher
        self.mixer = Mixer(config.mixup, config.cutmix) if config.mixup or config.cutmix else None
        distiller = place(distiller, accelerator.device, config)
        check: LossCheck | None = None
        if config.check_loss and distiller.nd is not None:
            assert teacher is not None
            assert teacher.class_means is not None
            check = LossCheck(distiller.nd, teacher.class_means)
        super().__init__(accelerator, config, data, distiller, check)

    def test(self) -> dict[str, Any]:
        """See `TrainingLoop.test`."""
        test, average = self.evaluate()
        self.bar.show(accuracy=test["accuracy"])
        return {"test": test, "ema": average}

    def evaluate(self) -> tuple[dict[str, float], dict[str, float] | None]:
        """The metrics on the test set, of the student and of its average if there is one."""
        found: list[dict[str, float]] = []
        for model in (self.model, self.average):
            if model is None:
                return found[0], None
            share_buffers(model)  # what is measured is what will be saved
            was_training = model.training
            model.eval()
            means = None if self.teacher is None else self.teacher.class_means
            if means is not None and means.shape[1] != self._width():
                means = None  # without a projector the features are not in the teacher's space
            metrics = evaluate(self.accelerator, model, self.data.test, self.config, means)
            if self.teacher is not None and means is not None:
                metrics["norm_ratio"] = metrics["norm"] / self.teacher.metrics["norm"]
            model.train(was_training)
            found.append(metrics)
        return found[0], found[1]

    def _width(self) -> int:
        projector = self.distiller.projector
        return self.distiller.network.dim if projector is None else projector[-1].out_features

    def losses(self, batch: tuple[Tensor, ...], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a batch's losses with factors and warm-ups, and each without.

        ``batch`` has images and labels, and logits and norms where a teacher's are kept.
        """
        config, position = self.config, self.position
        device = self.accelerator.device
        images = move(batch[0], device, config)
        labels, *kept = (values.to(device, non_blocking=True) for values in batch[1:])
        targets: Tensor | ndfast.Mix = labels
        if self.mixer is not None:
            rank = self.accelerator.process_index
            seed = mix_seeds(MIXING, config.seed, position.step, number, rank)
            images, targets = self.mixer(images, labels, np.random.default_rng(seed))
        teacher = None
        if kept:
            teacher = as_output(*kept)
        elif self.teacher is not None:
            with self.stopwatch.part("teacher"), self.accelerator.autocast():
                teacher = self.teacher(images)
        with self.stopwatch.part("forward"):
            parts = self.model(images, targets, teacher)
        factors = {
            "ce": config.ce_weight,
            "distillation": config.distill_weight * self.warmup(config.distill_warmup),
            "nd": self.warmup(config.nd_warmup),
        }
        terms = [
            parts[name] if factor == 1 else factor * parts[name]
            for name, factor in factors.items()
            if name in parts
        ]
        found = {name: value.detach() for name, value in parts.items()}
        if "nd" in found:
            found["nd"] = found["nd"] / config.nd_weight
        return sum(terms[1:], terms[0]), found
