"""The command `ndfast train`: from the configuration to the table and the files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import ndfast
from ndfast.dispatch import choose
from ndfast.train.comparison import (
    TIMED_STEPS,
    WARM_UP_STEPS,
    compare_trajectories,
    measure_step_times,
)
from ndfast.train.config import ConfigError, TrainConfig
from ndfast.train.data import DATA, Data
from ndfast.train.experiment import Experiment
from ndfast.train.plot import plot_curves
from ndfast.train.report import Results, build_table, summarise


def run(config: TrainConfig, console: Console) -> Results:
    """Trains, compares, shows the table and writes the files into ``config.out``.

    The files are `class_means.safetensors`, `results.json` and `curves.png`; those of an earlier
    run are replaced. Device and processes are what Accelerate finds. Every process returns; only
    the main one shows and writes anything.

    Args:
        config: the run.
        console: where progress and the table go.

    Returns:
        What `results.json` holds; see `ndfast.train.report.summarise`.

    Raises:
        ConfigError: the run cannot start as it is configured.
        FloatingPointError: a training diverged.
    """
    accelerator = Accelerator()
    if accelerator.mixed_precision != "no":
        raise ConfigError(
            f"mixed_precision: got {accelerator.mixed_precision!r}; the harness trains in float32"
        )
    backend = _resolve_backend(accelerator.device, config.backend)
    data = _load_data(config, accelerator.num_processes)
    if accelerator.is_main_process:
        _check_writable(config.out)
    with (
        _torch_settings(config.threads),
        Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not accelerator.is_main_process,
        ) as progress,
    ):
        experiment, results = _run_all(config, data, accelerator, backend, progress)
    if accelerator.is_main_process:
        ndfast.save_class_means(
            config.out / "class_means.safetensors",
            experiment.class_means,
            counts=experiment.counts,
            teacher=f"ConvNet {config.teacher_channels} on {config.data}",
        )
        _write_json(config.out / "results.json", results)
        plot_curves(results, config.out / "curves.png")
        console.print(build_table(results))
        console.print(f"Written to {config.out}: class_means.safetensors, curves.png, results.json")
    accelerator.end_training()
    return results


@contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """Settings for the length of a run; what was set before comes back."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # Full float32 and deterministic kernels: else two equal trainings drift apart on a GPU.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads_before)


def _run_all(
    config: TrainConfig, data: Data, accelerator: Accelerator, backend: str, progress: Progress
) -> tuple[Experiment, Results]:
    def bar(description: str, total: int) -> Callable[[], None]:
        task = progress.add_task(description, total=total)
        return lambda: progress.advance(task)

    experiment = Experiment(config, data, accelerator, bar("teacher", config.epochs))
    runs = {}
    for method in config.methods:
        advance = bar(f"{method}, {config.seeds} seeds", config.seeds * config.epochs)
        runs[method] = [
            experiment.train_student(method, seed, backend, advance) for seed in range(config.seeds)
        ]
    trajectories, backends = None, ["reference"]
    if backend != "reference":
        backends = [backend, "reference"]
        fused, reference = (
            experiment.train_student("kd++", 0, name, bar(f"kd++, {name}", config.epochs))
            for name in backends
        )
        trajectories = compare_trajectories(fused, reference)
    advance = bar("step times", WARM_UP_STEPS + TIMED_STEPS)
    step_ms = measure_step_times(experiment, backends, advance)
    return experiment, summarise(experiment, backend, runs, step_ms, trajectories)


def _resolve_backend(device: torch.device, name: str | None) -> str:
    try:
        return choose(device, name).__name__.rpartition(".")[2]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _load_data(config: TrainConfig, num_processes: int) -> Data:
    data = DATA[config.data]()
    share = len(data.train) // num_processes
    if config.batch_size > share:
        raise ConfigError(
            f"batch_size: got {config.batch_size}; it takes at most {share}, a process's share of "
            "the training images"
        )
    return data


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"out: cannot write to {str(folder)!r}: {error.strerror}") from error


def _write_json(path: Path, results: Results) -> None:
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)
