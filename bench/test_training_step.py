"""A training step: what the ND loss costs of it, and what the teacher does where it is not kept.

Networks of KD++'s on noise in CIFAR-100's size, batches of 64, as KD++ trains them.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs the extra [train]")
pytest.importorskip("rich", reason="needs the extra [train]")

from rich.console import Console
from rich.table import Table

import ndfast
from bench.steps import per_sample_loss
from bench.timing import clock
from ndfast.train.compare.step_times import time_steps
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.distill.evaluation import move
from ndfast.train.distill.kept_outputs import find_teacher
from ndfast.train.distill.make_teacher_outputs import make_teacher_outputs
from ndfast.train.distill.teacher import Teacher, freeze
from ndfast.train.engine.trainer import Trainer
from ndfast.train.machine.processes import build_accelerator, torch_settings
from ndfast.train.machine.progress import Bars
from ndfast.train.models import build_model
from ndfast.train.models.weights import save_weights
from ndfast.train.runs.run import build_trainer

ROUNDS = 200
BATCH, CLASSES, KEPT_STEPS = 64, 100, 20


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
        Console(width=100).print("\n", table)


@pytest.mark.parametrize(
    ("teacher", "student"), [("resnet56", "resnet20"), ("resnet32x4", "resnet8x4")]
)
def test_kept_outputs(
    teacher: str, student: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_weights(build_model(teacher, CLASSES, (3, 32, 32)), weights)
    config = TrainConfig(
        data=f"synthetic:{BATCH * KEPT_STEPS},{CLASSES},3x32x32",
        teacher=teacher,
        model=student,
        batch_size=BATCH,
        teacher_weights=str(weights),
    )
    outputs = tmp_path / "outputs"
    bars = Bars(Console(quiet=True), enabled=False)
    with torch_settings(config):
        make_teacher_outputs(config, outputs, torch.float32, False, Console(quiet=True))
        trainers = {}
        for name, chosen in {
            "teacher running": config,
            "outputs kept": replace(config, teacher_outputs=str(outputs)),
        }.items():
            accelerator = build_accelerator(chosen)
            found, _, data = find_teacher(accelerator, chosen, build_data(chosen.data), bars)
            trainers[name] = build_trainer(chosen, accelerator, data, found)
        steps = _time_whole_steps(trainers)
        forward = _time_forward(config)
    running, kept = steps["teacher running"], steps["outputs kept"]
    table = Table(title=f"{teacher} to {student}, KD++, batches of {BATCH}; medians")
    for heading in ("", "ms", ""):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("step, teacher running", f"{running:.1f}")
    table.add_row("step, outputs kept", f"{kept:.1f}", f"{running / kept:.2f} times as fast")
    plain, folded = (1e3 * BATCH / forward[name] for name in ("plain", "folded"))
    table.add_row("teacher's forward", f"{forward['plain']:.1f}", f"{plain:.0f} images/s")
    table.add_row("folded, NHWC", f"{forward['folded']:.1f}", f"{folded:.0f} images/s")
    with capsys.disabled():
        Console(width=100).print("\n", table)


def _time_whole_steps(trainers: dict[str, Trainer]) -> dict[str, float]:
    """Of steps in turn, each with the loading of its batch, in ms."""
    times: dict[str, list[float]] = {name: [] for name in trainers}
    batches = {name: trainer.steps_of_epoch(0) for name, trainer in trainers.items()}
    for _ in range(KEPT_STEPS):
        for name, trainer in trainers.items():
            start = clock()
            trainer.step(next(batches[name]))
            times[name].append(1e3 * (clock() - start))
    return {name: median(found[2:]) for name, found in times.items()}


def _time_forward(config: TrainConfig) -> dict[str, float]:
    """Of the teacher as it was trained, in NCHW, and as a frozen one runs, in ms."""
    device = build_accelerator(config).device
    network = build_model(config.teacher, CLASSES, (3, 32, 32)).eval().to(device)
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    runs = {
        "plain": (deepcopy(network), images),
        "folded": (freeze(network, config, device), move(images, device, config)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(KEPT_STEPS):
            for name, (model, batch) in runs.items():
                start = clock()
                model(batch)
                times[name].append(1e3 * (clock() - start))
    return {name: median(found[2:]) for name, found in times.items()}


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
