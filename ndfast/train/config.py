"""What a run of `ndfast train` is made of, and the defaults of each data set."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ndfast.dispatch import BACKENDS
from ndfast.train.data import DATA
from ndfast.train.losses import METHODS


class ConfigError(ValueError):
    """A run cannot start as it is configured; the message is one sentence that names the value."""


@dataclass(frozen=True)
class TrainConfig:
    """A run: one teacher, and a student for each method and seed.

    Optimiser, temperature and loss weights are those of KD++ on CIFAR-100 (ResNet-56 to ResNet-20):
    SGD with Nesterov momentum, CE + KD + 2·ND. The learning rate falls by a cosine to 0.

    Args:
        data: a name in `ndfast.train.data.DATA`.
        out: the folder that the files are written to.
        epochs: of the teacher and of each student.
        batch_size: images a step, in each process.
        lr: the learning rate at the start.
        teacher_channels: channels of the teacher's stages; the last is its feature width.
        student_channels: the same of the student.
        kernel_size: of both networks' convolutions.
        methods: names in `ndfast.train.losses.METHODS`.
        seeds: students a method; their seeds are 0 to seeds - 1.
        backend: of the ND loss; None for the fastest that can run.
        momentum: of SGD.
        weight_decay: of SGD.
        temperature: of the KD loss.
        kd_weight: the KD loss's factor.
        nd_weight: the ND loss's factor.
        threads: of PyTorch on the CPU. These networks gain nothing from a second one: a step of CE
            on digits took 3.2 to 3.5 ms with one and 3.0 to 3.8 ms with two on two quiet cores, but
            3 and 40 ms with other work on them.

    Raises:
        ConfigError: a value is not taken.
    """

    data: str
    out: Path
    epochs: int
    batch_size: int
    lr: float
    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    kernel_size: int
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 5
    backend: str | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 4.0
    kd_weight: float = 1.0
    nd_weight: float = 2.0
    threads: int = 1

    def __post_init__(self) -> None:
        _check_known("data", self.data, DATA)
        for method in self.methods:
            _check_known("method", method, METHODS)
        if self.backend is not None:
            _check_known("backend", self.backend, BACKENDS)
        _check_least("epochs", self.epochs, 1)
        _check_least("seeds", self.seeds, 1)
        _check_least("batch_size", self.batch_size, 2)  # batch normalisation needs two rows
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr: got {self.lr}; it takes a finite number above 0")


def _check_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: got {value!r}; it takes {', '.join(known)}")


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}: got {value}; it takes {least} or more")


DEFAULTS = {
    "digits": TrainConfig(
        data="digits",
        out=Path("runs/digits"),
        epochs=40,
        batch_size=32,
        lr=0.05,
        teacher_channels=(32, 64, 128),
        student_channels=(4, 8, 16),
        kernel_size=3,
    ),
    "mnist1d": TrainConfig(
        data="mnist1d",
        out=Path("runs/mnist1d"),
        epochs=12,
        batch_size=64,
        lr=0.02,
        teacher_channels=(32, 64, 128),
        student_channels=(4, 8, 16),
        kernel_size=5,
    ),
}
