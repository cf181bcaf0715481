"""One run: a student by one method from one seed, from the config to the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

import ndfast
from ndfast.dispatch import choose
from ndfast.train import files
from ndfast.train.config.methods import METHODS
from ndfast.train.config.train_config import TrainConfig, without_losses
from ndfast.train.data import Data, build_data
from ndfast.train.data.batches import mix_seeds
from ndfast.train.distill.distiller import Distiller
from ndfast.train.distill.kept_outputs import find_teacher
from ndfast.train.distill.teacher import (
    FROM_TEACHER,
    MEANS_KEYWORDS,
    PRETRAINED,
    Teacher,
    read_class_means,
)
from ndfast.train.engine.loop import count_steps
from ndfast.train.engine.trainer import Trainer
from ndfast.train.errors import ConfigError
from ndfast.train.machine.processes import build_accelerator, resolve_precision, session
from ndfast.train.machine.progress import Bars
from ndfast.train.models import build_model
from ndfast.train.models.weights import save_weights
from ndfast.train.report import build_run_table, write_run_page
from ndfast.train.runs import folder
from ndfast.train.runs.records import read_log
from ndfast.train.runs.results import summarise
from ndfast.train.runs.training import train_in

Results = dict[str, Any]


def run(config: TrainConfig, console: Console) -> Results:
    """Trains a student, shows a table and writes the run's folder; see `ndfast.train.runs.folder`.

    Every process calls this and returns; only the main one shows and writes anything, but for the
    checkpoints.

    Returns:
        What `results.json` holds.

    Raises:
        ConfigError: the run cannot start as it is configured.
        CheckpointError: a checkpoint cannot be written.
        FloatingPointError: too many batches in a row had a loss or a gradient of NaN or Inf, or the
            weights came to be so.
    """
    config = replace(config, precision=resolve_precision(config.precision))
    with session(config, console) as (accelerator, bars):
        results = run_once(config, bars)
    if accelerator.is_main_process:
        console.print(build_run_table(results))
        console.print(f"Written to {config.out}")
    return results


def run_once(config: TrainConfig, bars: Bars) -> Results:
    """`run` as a part of something larger: no table, and the processes stay together.

    A run that is over is not done again: its results are read.
    """
    accelerator = build_accelerator(config)  # of its own: it collects what a checkpoint holds
    out = Path(config.out)
    backend = None
    if METHODS[config.method].nd:
        backend = resolve_backend(accelerator, config.backend)
    data = build_data(config.data, config.data_dir, config.image_size)
    _validate_setup(config, accelerator, data)
    with folder.opened(config, accelerator):
        if (out / folder.RESULTS).exists():
            results = files.read_json(out / folder.RESULTS)
            all_steps = results["all_steps"]
            if results["steps"] >= min(config.max_steps or all_steps, all_steps):
                return results
        teacher, metadata, data = _find_teacher(config, accelerator, data, bars)
        trainer = build_trainer(config, accelerator, data, teacher)
        if accelerator.is_main_process:
            folder.begin(config)
            if teacher is not None and teacher.class_means is not None:
                ndfast.save_class_means(out / files.CLASS_MEANS, teacher.class_means, **metadata)
        try:
            return _train(trainer, backend, bars)
        finally:
            accelerator.free_memory()


def build_trainer(
    config: TrainConfig, accelerator: Accelerator, data: Data, teacher: Teacher | None
) -> Trainer:
    """A trainer of the config's student; the config's seed decides its weights and its dropout."""
    set_seed(config.seed)
    network = build_model(config.model, data.num_classes, data.image_shape)
    distiller = Distiller(network, config, teacher)
    # The same weights in every process, but not the same dropout.
    set_seed(mix_seeds(config.seed, accelerator.process_index) % 2**32)
    return Trainer(accelerator, config, data, distiller, teacher)


def train_teacher(config: TrainConfig, bars: Bars) -> TrainConfig:
    """Trains the teacher where none is given; the config with the weights that it came to."""
    if config.teacher_weights is not None or config.teacher_outputs is not None:
        return config
    teacher_run = teacher_config(config)
    run_once(teacher_run, bars)
    return replace(config, teacher_weights=str(Path(teacher_run.out) / folder.MODEL))


def teacher_config(config: TrainConfig) -> TrainConfig:
    """The run that trains a config's teacher: to its end, by plain cross entropy, from seed 0.

    What the student alone takes is left out, so that it may change while the teacher stays.
    """
    out = Path(config.out) / folder.TEACHER
    # It goes on: a run that replaces another has set the folder aside, one that was killed has not.
    begun = (out / folder.CONFIG).exists()
    return replace(
        without_losses(config),
        model=config.teacher,
        method="ce",
        class_means=FROM_TEACHER,
        learnable_class_means=False,
        lr=config.lr if config.teacher_lr is None else config.teacher_lr,
        teacher_lr=None,
        teacher_outputs=None,
        ema=None,
        max_steps=None,
        probe=False,
        seed=0,
        data_seed=None,
        out=str(out),
        resume=begun,
        overwrite=False,
    )


def resolve_backend(accelerator: Accelerator, backend: str | None) -> str:
    """The name of what computes the ND loss.

    Raises:
        ConfigError: the backend that is asked for cannot run here.
    """
    try:
        return choose(accelerator.device, backend).__name__.rpartition(".")[2]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"backend: {error}") from error


def check_inputs(config: Any, keywords: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ConfigError if a config names weights or class means that are not there.

    ``keywords`` are those that stand for no file, by field.
    """
    for name in ("teacher_weights", "class_means"):
        path = getattr(config, name)
        if path is not None and path not in keywords.get(name, ()) and not Path(path).is_file():
            raise ConfigError(f"{name}: cannot read {path}: there is no such file")


def _validate_setup(config: TrainConfig, accelerator: Accelerator, data: Data) -> None:
    """Raises what would only be raised once a teacher has been trained, and costs nothing."""
    count_steps(config, data.train, accelerator.num_processes)
    check_inputs(config, {"teacher_weights": (PRETRAINED,), "class_means": MEANS_KEYWORDS})
    with torch.device("meta"):
        network = build_model(config.model, data.num_classes, data.image_shape)
        teacher = None
        if _needs_teacher(config):
            teacher_network = build_model(config.teacher, data.num_classes, data.image_shape)
            means = torch.empty(data.num_classes, teacher_network.dim)
            teacher = Teacher(teacher_network, means, {})
        Distiller(network, config, teacher)
    if teacher is not None and config.class_means not in MEANS_KEYWORDS:
        shape = (data.num_classes, teacher.network.dim)
        read_class_means(Path(config.class_means), {"data": data.name}, shape)


def _needs_teacher(config: TrainConfig) -> bool:
    method = METHODS[config.method]
    return method.distillation is not None or method.nd or config.probe


def _find_teacher(
    config: TrainConfig, accelerator: Accelerator, data: Data, bars: Bars
) -> tuple[Teacher | None, dict[str, Any], Data]:
    """The teacher, trained first where none is given, what is kept beside its class means, and the
    data, which may bring its outputs.
    """
    if not _needs_teacher(config):
        return None, {}, data
    config = train_teacher(config, bars)
    with_means = METHODS[config.method].nd or config.probe
    return find_teacher(accelerator, config, data, bars, with_means)


def _train(trainer: Trainer, backend: str | None, bars: Bars) -> Results:
    config, accelerator, out = trainer.config, trainer.accelerator, Path(trainer.config.out)
    title = f"{config.method}, seed {config.seed}" if trainer.teacher else config.model
    digest, environment = train_in(out, title, trainer, trainer.distiller, bars)
    accelerator.wait_for_everyone()  # all read the same log, which the main one has written
    records = read_log(out / folder.LOG)
    results = summarise(trainer, backend, environment, digest, records)
    if accelerator.is_main_process:
        with files.writing_results(out, "checkpoints"):
            save_weights(trainer.distiller.network, out / folder.MODEL)
            if trainer.average is not None:
                average = trainer.average.module
                assert isinstance(average, Distiller)
                save_weights(average.network, out / folder.MODEL_EMA)
            write_run_page(out / folder.REPORT, results, records)
            files.write_json(out / folder.RESULTS, results)
    accelerator.wait_for_everyone()
    return results
