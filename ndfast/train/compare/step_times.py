"""The time of a training step of each method: both networks, losses and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

from ndfast.train.config.methods import METHODS
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.distill.kept_outputs import find_teacher
from ndfast.train.engine.trainer import Trainer
from ndfast.train.machine.processes import build_accelerator
from ndfast.train.machine.progress import Bars
from ndfast.train.runs.run import build_trainer

NO_ND = "no ND"
WARM_UP_STEPS = 20
TIMED_STEPS = 100

Variant = TypeVar("Variant")


def measure_step_times(
    configs: Mapping[str, TrainConfig], backends: Mapping[str, str], bars: Bars
) -> dict[str, dict[str, float]]:
    """The median time of a step of each method, in ms; nothing is probed here.

    A method's backend is timed besides the reference.

    Returns:
        By method, the median by backend; for a method without the ND loss, under `NO_ND`.
    """
    config = next(iter(configs.values()))
    data = build_data(config.data, config.data_dir, config.image_size)
    teacher, _, data = find_teacher(build_accelerator(config), config, data, bars)
    trainers: dict[tuple[str, str], Trainer] = {}
    for method in configs:
        distillation, has_nd = METHODS[method]
        needed = None if distillation is None else teacher
        for name in dict.fromkeys((backends[method], "reference")) if has_nd else [NO_ND]:
            chosen = replace(
                configs[method],
                probe=False,
                check_loss=False,
                backend=None if name == NO_ND else name,
            )
            trainers[method, name] = build_trainer(chosen, build_accelerator(chosen), data, needed)
    medians: dict[str, dict[str, float]] = {method: {} for method in configs}
    with bars.run("step times", WARM_UP_STEPS + TIMED_STEPS) as bar:
        for (method, name), time in time_steps(trainers, bar.advance).items():
            medians[method][name] = time
    return medians


def time_steps(
    trainers: Mapping[Variant, Trainer],
    after_batch: Callable[[], None] = lambda: None,
    warm_up_steps: int = WARM_UP_STEPS,
    timed_steps: int = TIMED_STEPS,
) -> dict[Variant, float]:
    """The median time of a step of each trainer, in ms.

    Each batch is given to all trainers in turn, so that whatever else the machine does falls on
    all of them alike, and each comes first as often as any other.
    """
    times: dict[Variant, list[float]] = {variant: [] for variant in trainers}
    order = list(trainers)
    for trainer in trainers.values():
        trainer.model.train()
    steps = warm_up_steps + timed_steps
    batches = list(islice(trainers[order[0]].steps_of_epoch(0), steps))
    for batch in islice(cycle(batches), steps):
        order.append(order.pop(0))
        for variant in order:
            device = trainers[variant].accelerator.device
            _synchronize(device)
            start = perf_counter()
            trainers[variant].step(batch)
            _synchronize(device)
            times[variant].append(1e3 * (perf_counter() - start))
        after_batch()
    return {variant: median(found[warm_up_steps:]) for variant, found in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
