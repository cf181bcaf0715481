"""The fused ND loss against the reference: the trajectory of a training, and the time of a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ndfast.train.experiment import Experiment, StudentRun
from ndfast.train.loop import build_optimizer, train_step, training_loader
from ndfast.train.losses import METHODS

# With the defaults native and reference come out 1.1e-6 (digits) and 2.3e-6 (mnist1d) apart; an ND
# loss that is 0.1 % too large, 1.1e-3 and 2.8e-3.
TOLERANCE = 1e-3
NO_ND = "no ND"
WARM_UP_STEPS = 20
TIMED_STEPS = 100


def compare_trajectories(fused: StudentRun, reference: StudentRun) -> dict[str, Any]:
    """How far two trainings from the same seed are apart.

    Returns:
        "max_loss_difference": of the steps' losses, relative to the reference's; and
        "parameter_difference": the L2 norm of the final parameters' difference, relative to the
        norm of the reference's; "steps"; "tolerance"; and "agrees", whether both differences are
        within it.
    """
    ours = torch.tensor(fused.losses, dtype=torch.float64)
    theirs = torch.tensor(reference.losses, dtype=torch.float64)
    loss_difference = ((ours - theirs).abs() / theirs.abs()).max().item()
    difference = (fused.parameters - reference.parameters).norm()
    parameter_difference = (difference / reference.parameters.norm()).item()
    return {
        "steps": len(reference.losses),
        "max_loss_difference": loss_difference,
        "parameter_difference": parameter_difference,
        "tolerance": TOLERANCE,
        "agrees": max(loss_difference, parameter_difference) <= TOLERANCE,
    }


def measure_step_times(
    experiment: Experiment, backends: list[str], after_step: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """The time of a training step of each method, in ms: both networks, losses and optimiser.

    Every variant trains its own student. Each batch is given to all variants in turn, so that
    whatever else the machine does falls on all of them alike, and each comes first as often as any
    other. Batches lie on the device beforehand. The median of `TIMED_STEPS` steps after
    `WARM_UP_STEPS`.

    Args:
        experiment: the teacher and the data.
        backends: to time the ND loss with.
        after_step: is called after each batch.

    Returns:
        By method, the median by backend; for a method without the ND loss, under `NO_ND`.
    """
    config, accelerator = experiment.config, experiment.accelerator
    variants: dict[tuple[str, str], Callable[[Tensor, Tensor], None]] = {}
    for method in config.methods:
        for backend in backends if METHODS[method].nd else [NO_ND]:
            variants[method, backend] = _stepper(experiment, method, backend)
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants}
    loader = training_loader(experiment.data.train, config.batch_size, seed=0)
    batches = cycle(list(accelerator.prepare(loader)))
    order = list(variants)
    for images, target in islice(batches, WARM_UP_STEPS + TIMED_STEPS):
        order.append(order.pop(0))
        for variant in order:
            _synchronize(accelerator.device)
            start = perf_counter()
            variants[variant](images, target)
            _synchronize(accelerator.device)
            times[variant].append(1e3 * (perf_counter() - start))
        after_step()
    accelerator.free_memory()
    medians: dict[str, dict[str, float]] = {method: {} for method in config.methods}
    for (method, backend), steps in times.items():
        medians[method][backend] = median(steps[WARM_UP_STEPS:])
    return medians


def _stepper(experiment: Experiment, method: str, backend: str) -> Callable[[Tensor, Tensor], None]:
    student = experiment.build_student(method, seed=0, probe=False).train()
    optimizer = experiment.accelerator.prepare(build_optimizer(student, experiment.config))

    def step(images: Tensor, target: Tensor) -> None:
        loss = experiment.student_loss(method, student, images, target, backend)
        train_step(experiment.accelerator, optimizer, loss)

    return step


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
