"""The training of a `DetectionDistiller`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast.train.data.batches import TrainingBatches, load
from ndfast.train.detection.batches import move
from ndfast.train.detection.coco import CocoDataset, DetectionData
from ndfast.train.detection.config import DetectionConfig
from ndfast.train.detection.detector import Detector, Target
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.distill.evaluation import share_buffers
from ndfast.train.engine.finite import FiniteCheck
from ndfast.train.engine.optimizers import build_optimizer, learning_rate, step_at
from ndfast.train.engine.position import Bar, Log, Position, Silent
from ndfast.train.engine.skipping import Skipping
from ndfast.train.engine.stopwatch import Stopwatch
from ndfast.train.errors import ConfigError


def count_steps(accelerator: Accelerator, dataset: CocoDataset, config: DetectionConfig) -> int:
    """The steps of an epoch.

    Raises:
        ConfigError: there are none.
    """
    steps = len(dataset) // (config.batch_size * accelerator.num_processes)
    if steps == 0:
        most = len(dataset) // accelerator.num_processes
        raise ConfigError(
            f"batch_size: got {config.batch_size}; expected at most {most}, a process's share of "
            "the training images"
        )
    return steps


class DetectionTrainer:
    """Trains a distiller's student, from wherever its position says.

    Args:
        accelerator: the device and the processes.
        distiller: not yet prepared by Accelerate.
        teacher: on the device, in evaluation mode; None where the method has none.
        data: what to train on.
        config: batches and optimiser.

    Attributes:
        position: what `Accelerator.load_state` sets.
        stopwatch: the time of a step by its parts; the teacher's is in "forward".
        all_steps: of the optimiser, in the whole training.

    Raises:
        ConfigError: a step takes more images than there are.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        distiller: DetectionDistiller,
        teacher: Detector | None,
        data: DetectionData,
        config: DetectionConfig,
    ) -> None:
        self.accelerator, self.teacher, self.dataset = accelerator, teacher, data.train
        self.config, self.shared = config, config.shared()
        self.steps_per_epoch = count_steps(accelerator, data.train, config)
        self.all_steps = self.steps_per_epoch * config.epochs
        optimizer = build_optimizer(distiller, self.shared)
        self.model, self.optimizer = accelerator.prepare(distiller, optimizer)
        self.position = Position(data.name, accelerator.num_processes)
        accelerator.register_for_checkpointing(self.position)
        self.stopwatch = Stopwatch(accelerator.device)
        if distiller.nd is not None:
            self.stopwatch.watch("nd", distiller.nd)
        self.finite = FiniteCheck(accelerator)
        self.skipping = Skipping(self.model, self.position, config.max_skipped, config.seed)
        self.log: Log = Silent()
        self.bar: Bar = Silent()

    def train(self, log: Log, bar: Bar, after_epoch: Callable[[], None]) -> None:
        """Trains until the last epoch; the student is in evaluation mode afterwards.

        Args:
            log: is told what happens.
            bar: shows it.
            after_epoch: is called after each epoch; the place for checkpoints.

        Raises:
            FloatingPointError: too many steps in a row had a loss or a gradient of NaN or Inf.
        """
        config, position, accelerator = self.config, self.position, self.accelerator
        self.log, self.bar = log, bar
        rank, processes = accelerator.process_index, accelerator.num_processes
        batches = TrainingBatches(
            len(self.dataset), config.batch_size, config.seed, config.seed, rank, processes
        )
        self.model.train()
        while position.epoch < config.epochs:
            batches.epoch = position.epoch
            start = perf_counter()
            loaded = load(
                self.dataset,  # type: ignore[arg-type]  # lists, for images of any sizes
                batches,
                config.workers,
                accelerator.device,
            )
            for _ in range(self.steps_per_epoch):
                self.stopwatch.start_step()
                with self.stopwatch.part("data"):
                    images, targets = next(loaded)
                self.step(images, targets)
            self._end_epoch(perf_counter() - start)
            after_epoch()
        share_buffers(self.model)  # a teacher is the same in every process
        self.model.eval()

    def step(self, images: list[Tensor], targets: list[Target]) -> None:
        """One step of the optimiser."""
        position = self.position
        images, targets = move(images, targets, self.accelerator.device)
        self.skipping.begin_step()
        with self.stopwatch.part("forward"):
            parts = self.model(images, targets, self.teacher)
            loss = torch.stack([*parts.values()]).sum()
        self.finite.watch(loss)
        losses = {name: value.detach() for name, value in {"loss": loss, **parts}.items()}
        with self.stopwatch.part("backward"):
            self.accelerator.backward(loss)
        rate = learning_rate(self.shared, position.step, self.steps_per_epoch)
        with self.stopwatch.part("optimizer"):
            self.finite.clip_and_watch(self.model.parameters())
            finite = self.finite.all_finite()
            if finite:
                step_at(self.optimizer, rate)
        self.skipping.end_step(finite, [losses], self.log)
        self.optimizer.zero_grad()
        position.step += 1
        self.stopwatch.end_step()
        if position.step % self.config.log_every:
            self.bar.advance()
            return
        images_in_step = self.config.batch_size * self.accelerator.num_processes
        speed = images_in_step / self.stopwatch.seconds_per_step()
        position.log_step(self.accelerator, [losses], rate, speed, self.log, self.bar)

    def _end_epoch(self, seconds: float) -> None:
        position = self.position
        images = self.steps_per_epoch * self.config.batch_size * self.accelerator.num_processes
        train = position.end_epoch(self.accelerator)
        self.log.write(
            "epoch",
            epoch=position.epoch,
            step=position.step,
            train=train,
            parts_ms=self.stopwatch.medians_ms(),
            images_per_s=images / seconds,
            skipped=position.skipped,
        )
