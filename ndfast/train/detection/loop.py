"""The training of a `DetectionDistiller`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast.train.data.batches import TrainingBatches, build_loader
from ndfast.train.detection.coco import CocoDataset, DetectionData
from ndfast.train.detection.config import DetectionConfig
from ndfast.train.detection.detector import Detector, Target
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.errors import ConfigError
from ndfast.train.evaluation import share_buffers
from ndfast.train.finite import FiniteCheck
from ndfast.train.optimizers import build_optimizer, learning_rate
from ndfast.train.position import Bar, Log, Position


def count_steps(accelerator: Accelerator, dataset: CocoDataset, config: DetectionConfig) -> int:
    """The steps of an epoch.

    Raises:
        ConfigError: there are none.
    """
    steps = len(dataset) // (config.batch_size * accelerator.num_processes)
    if steps == 0:
        most = len(dataset) // accelerator.num_processes
        raise ConfigError(
            f"batch_size: got {config.batch_size}; it takes at most {most}, a process's share of "
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
        self.finite = FiniteCheck(accelerator)

    def train(self, log: Log, bar: Bar, after_epoch: Callable[[], None]) -> None:
        """Trains until the last epoch; the student is in evaluation mode afterwards.

        Args:
            log: is told what happens.
            bar: shows it.
            after_epoch: is called after each epoch; the place for checkpoints.

        Raises:
            FloatingPointError: the loss or its gradient is NaN or infinite; that step is not taken.
        """
        config, position, accelerator = self.config, self.position, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        batches = TrainingBatches(
            len(self.dataset), config.batch_size, config.seed, rank, processes
        )
        self.model.train()
        while position.epoch < config.epochs:
            batches.epoch = position.epoch
            loader = build_loader(
                self.dataset,  # type: ignore[arg-type]  # lists, for images of any sizes
                batches,
                config.workers,
                accelerator.device,
            )
            told, since = position.step, perf_counter()
            for images, targets in loader:
                losses, rate = self.step(images, targets)
                if position.step % config.log_every:
                    bar.advance()
                    continue
                values = {name: value.item() for name, value in losses.items()}
                images_done = (position.step - told) * config.batch_size * processes
                speed = images_done / (perf_counter() - since)
                told, since = position.step, perf_counter()
                loss = sum(values.values())
                log.write(
                    "step",
                    step=position.step,
                    epoch=position.epoch + 1,
                    loss=loss,
                    losses=values,
                    lr=rate,
                    images_per_s=speed,
                )
                bar.advance(loss=loss, **values, images_per_s=speed)
            self._end_epoch(log)
            after_epoch()
        share_buffers(self.model)  # a teacher is the same in every process
        self.model.eval()

    def step(self, images: list[Tensor], targets: list[Target]) -> tuple[dict[str, Tensor], float]:
        """One step of the optimiser; its losses, each with its factor, and its learning rate."""
        position = self.position
        images, targets = move(images, targets, self.accelerator.device)
        losses = self.model(images, targets, self.teacher)
        loss = torch.stack([*losses.values()]).sum()
        self.finite.ask(loss)
        self.accelerator.backward(loss)
        self.finite.ask_gradient(self.model.parameters())
        losses = {name: value.detach() for name, value in losses.items()}
        if not self.finite.answer():
            listed = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
            raise FloatingPointError(
                "the training loss or its gradient is NaN or infinite in epoch "
                f"{position.epoch + 1} with seed {self.config.seed} ({listed}); "
                "a lower learning rate may help"
            )
        rate = learning_rate(self.shared, position.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        position.count([losses])
        position.step += 1
        return losses, rate

    def _end_epoch(self, log: Log) -> None:
        position = self.position
        position.settle(self.accelerator)
        position.epoch += 1
        log.write(
            "epoch",
            epoch=position.epoch,
            step=position.step,
            train={name: value / position.counted for name, value in position.sums.items()},
        )
        position.sums, position.counted = {}, 0


def move(
    images: list[Tensor], targets: list[Target], device: torch.device
) -> tuple[list[Tensor], list[Target]]:
    """A batch on the device."""
    return [image.to(device) for image in images], [
        Target(*(part.to(device) for part in target)) for target in targets
    ]
