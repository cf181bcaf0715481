"""The training of a `DetectionDistiller`."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast.train.data.batches import TrainingBatches, build_loader
from ndfast.train.detection.coco import CocoDataset
from ndfast.train.detection.config import DetectionConfig
from ndfast.train.detection.detector import Detector, Target
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.errors import ConfigError
from ndfast.train.finite import FiniteCheck
from ndfast.train.optimizers import build_optimizer, learning_rate
from ndfast.train.position import Bar


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


def train(
    accelerator: Accelerator,
    distiller: DetectionDistiller,
    teacher: Detector | None,
    dataset: CocoDataset,
    config: DetectionConfig,
    bar: Bar,
) -> dict[str, float]:
    """Trains the distiller's student, which is in evaluation mode afterwards.

    Args:
        accelerator: the device and the processes.
        distiller: not yet prepared by Accelerate.
        teacher: on the device, in evaluation mode; None where the method has none.
        dataset: what to train on.
        config: batches and optimiser.
        bar: shows each step.

    Returns:
        The mean of each loss over the last epoch.

    Raises:
        ConfigError: a step takes more images than there are.
        FloatingPointError: the loss is NaN or infinite; that step is not taken.
    """
    steps, shared = count_steps(accelerator, dataset, config), config.shared()
    optimizer = build_optimizer(distiller, shared)
    model, optimizer = accelerator.prepare(distiller.train(), optimizer)
    rank, processes = accelerator.process_index, accelerator.num_processes
    batches = TrainingBatches(len(dataset), config.batch_size, config.seed, rank, processes)
    finite = FiniteCheck(accelerator)
    for epoch in range(config.epochs):
        batches.epoch = epoch
        seen: dict[str, list[float]] = defaultdict(list)
        loader = build_loader(
            dataset,  # type: ignore[arg-type]  # lists, for images of any sizes
            batches,
            config.workers,
            accelerator.device,
        )
        for step, (images, targets) in enumerate(loader, start=epoch * steps):
            images, targets = move(images, targets, accelerator.device)
            losses = model(images, targets, teacher)
            loss = torch.stack([*losses.values()]).sum()
            finite.ask(loss)
            accelerator.backward(loss)
            values = {name: value.item() for name, value in losses.items()}
            if not finite.answer():
                listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                raise FloatingPointError(
                    f"the training loss is NaN or infinite in epoch {epoch + 1} with seed "
                    f"{config.seed} ({listed}); a lower learning rate may help"
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(shared, step, steps)
            optimizer.step()
            optimizer.zero_grad()
            for name, value in values.items():
                seen[name].append(value)
            bar.advance(loss=sum(values.values()))
    accelerator.free_memory()
    distiller.eval()
    return {name: fmean(values) for name, values in seen.items()}


def move(
    images: list[Tensor], targets: list[Target], device: torch.device
) -> tuple[list[Tensor], list[Target]]:
    """A batch on the device."""
    return [image.to(device) for image in images], [
        Target(*(part.to(device) for part in target)) for target in targets
    ]
