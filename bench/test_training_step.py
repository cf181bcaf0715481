"""What the ND loss costs of a training step: fused, by the definition, and by KD++'s loop.

ResNet-56 to ResNet-20 on noise in CIFAR-100's size, batches of 64, as KD++ trains them.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs the extra [train]")
pytest.importorskip("rich", reason="needs the extra [train]")

from rich.table import Table

import ndfast
from bench.steps import per_sample_loss
from bench.timing import clock
from ndfast.train.config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.loop import Trainer
from ndfast.train.models import build_model
from ndfast.train.processes import build_accelerator, torch_settings
from ndfast.train.run import build_trainer
from ndfast.train.step_times import time_steps
from ndfast.train.teacher import Teacher, freeze

ROUNDS = 200
BATCH, CLASSES = 64, 100


class PerSample(nn.Module):
    """KD++'s loop in the place of `ndfast.NDLoss`."""

    def __init__(self, class_means: Tensor, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.as_lists = {str(label): mean for label, mean in enumerate(class_means.tolist())}

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return self.weight * per_sample_loss(student, teacher, self.as_lists, target)


def test_training_step(capsys: pytest.CaptureFixture) -> None:
    config = TrainConfig(data=f"synthetic:{4 * BATCH},{CLASSES},3x32x32", batch_size=BATCH)
    with torch_settings(config):
        trainers = _trainers(config)
        steps = time_steps(trainers, warm_up_steps=2, timed_steps=40)
        losses = _time_losses({name: trainers[name] for name in trainers if name != "kd"})
    table = Table(title=f"{config.teacher} to {config.model}, batches of {BATCH}; medians")
    for heading in ("", "step, ms", "over kd", "loss alone, ms", "of the step"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, step in steps.items():
        loss = losses.get(name)
        table.add_row(
            name,
            f"{step:.2f}",
            f"{100 * (step / steps['kd'] - 1):+.2f} %",
            "" if loss is None else f"{loss:.3f}",
            "" if loss is None else f"{100 * loss / step:.2f} %",
        )
    with capsys.disabled():
        from rich.console import Console

        Console(width=100).print("\n", table)


def _trainers(config: TrainConfig) -> dict[str, Trainer]:
    accelerator = build_accelerator(config)
    data = build_data(config.data)
    torch.manual_seed(0)
    network = freeze(
        build_model(config.teacher, CLASSES, data.image_shape), config, accelerator.device
    )
    means = torch.randn(CLASSES, network.dim, device=accelerator.device)
    teacher = Teacher(network, means, {})
    variants = {
        "kd": replace(config, method="kd"),
        "kd++, fused": replace(config, method="kd++"),
        "kd++, reference": replace(config, method="kd++", backend="reference"),
        "kd++, loop": replace(config, method="kd++"),
    }
    trainers = {
        name: build_trainer(chosen, build_accelerator(chosen), data, teacher)
        for name, chosen in variants.items()
    }
    looping = trainers["kd++, loop"].model
    looping.nd = PerSample(means, looping.nd.weight)
    return trainers


def _time_losses(trainers: dict[str, Trainer]) -> dict[str, float]:
    """The ND loss and its gradient to the student's features, by themselves, in ms."""
    teacher = next(iter(trainers.values())).teacher
    device = teacher.class_means.device
    student, features = (torch.randn(BATCH, teacher.network.dim, device=device) for _ in range(2))
    student.requires_grad_()
    target = torch.randint(CLASSES, (BATCH,), device=device)
    losses = {name: trainer.model.nd for name, trainer in trainers.items()}
    expected = ndfast.nd_loss(
        student, features, teacher.class_means, target, weight=2.0, backend="reference"
    )
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(ROUNDS):
        for name, loss in losses.items():
            start = clock()
            value = loss(student, features, target)
            torch.autograd.grad(value, student)
            times[name].append(1e3 * (clock() - start))
            torch.testing.assert_close(value, expected)
    return {name: median(found) for name, found in times.items()}
