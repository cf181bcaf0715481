"""A run's folder: who may write into it, and what every run keeps there.

All processes read it: on several machines it is one that they share.

- `config.json`: every field of the run, to repeat it
- `log.jsonl`: versions, git revision and device; steps, epochs, skipped batches, checkpoints
- `checkpoints/`: the newest, for --resume
- `class_means.safetensors`, `model.safetensors`, `model_ema.safetensors`
- `results.json`: what was found; a run that has it is over
- `report.html`: the same to look at
- `teacher/`: the run of a teacher that was trained first
- `runs/`: the runs of a comparison, or a detector's student by each method

Of a detector, log, checkpoints and weights are in `teacher/` and in each folder of `runs/`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ndfast.environment import describe_environment
from ndfast.train.config.detection_config import AnyConfig
from ndfast.train.config.same_run import check_same_run
from ndfast.train.errors import ConfigError
from ndfast.train.files import CLASS_MEANS, check_writable, read_json, write_json, writing_to
from ndfast.train.runs import replaced

CONFIG, LOG, RESULTS = "config.json", "log.jsonl", "results.json"
CHECKPOINTS, REPORT = "checkpoints", "report.html"
MODEL, MODEL_EMA = "model.safetensors", "model_ema.safetensors"
TENSORBOARD, TEACHER, RUNS = "tensorboard", "teacher", "runs"
_FILES = (CONFIG, LOG, RESULTS, CLASS_MEANS, REPORT, MODEL, MODEL_EMA)
_WRITTEN = (*_FILES, CHECKPOINTS, TENSORBOARD, TEACHER, RUNS)
_PACKAGES = (
    "accelerate",
    "mnist1d",
    "pycocotools",
    "pytorch_optimizer",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torchvision",
)


def is_resumed(config: AnyConfig) -> bool:
    """Whether the run goes on where it was: asked for, or torchrun has restarted the processes."""
    return config.resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def opened(config: AnyConfig, accelerator: Accelerator) -> Iterator[None]:
    """Opens the run's folder; every process must call this.

    A run that this one replaces is put back if the block fails before it has a checkpoint.

    Raises:
        ConfigError: as `open_folder`.
    """
    if accelerator.is_main_process:
        open_folder(config)
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            replaced.settle(Path(config.out), _WRITTEN)


def open_folder(config: AnyConfig) -> None:
    """Makes the run's folder, or checks that the run in it is the one to resume.

    One that is to be replaced is set aside, see `ndfast.train.runs.replaced`.

    Raises:
        ConfigError: it cannot be written to; it holds a run that is neither to be resumed nor to be
            replaced, or is to be resumed with another config; what no run wrote is in the way; or
            --overwrite would remove a file that the config names.
    """
    folder = Path(config.out)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, folder)
    # One that was killed before its first checkpoint, and so has nothing to resume.
    got_nowhere = replaced.settle(folder, _WRITTEN)
    begun = _read_config(folder)
    if begun is None:
        _check_nothing_is_lost(folder)
    if is_resumed(config) and not (got_nowhere and config.overwrite):
        if begun is not None:
            check_same_run(config, begun)
    elif begun is not None and config.overwrite:
        _check_inputs_stay(config, folder)
        replaced.set_aside(folder, _WRITTEN)
    elif begun is not None:
        raise ConfigError(
            f"out: {folder} holds a run; expected --resume to go on with it, --overwrite to "
            "replace it, or another folder"
        )


def begin(config: AnyConfig) -> None:
    """Makes the folder this run's: all that the config names has been found and fits."""
    write_json(Path(config.out) / CONFIG, asdict(config))


def _read_config(folder: Path) -> dict[str, Any] | None:
    """The config of the run in a folder; None where there is none, or a file of somebody else's."""
    if not (folder / CONFIG).exists():
        return None
    found = read_json(folder / CONFIG)
    return found if isinstance(found, dict) and found.keys() >= {"out", "overwrite"} else None


def _check_nothing_is_lost(folder: Path) -> None:
    """Raises ConfigError where a run would write over what no run wrote, or not this one."""
    for name in _WRITTEN:
        path = folder / name
        # A run that was killed while its teacher was trained has left that; it goes on.
        if name == TEACHER and _read_config(path) is not None:
            continue
        # A hidden file is what a killed write left.
        if path.is_file() or any(not each.name.startswith(".") for each in path.glob("*")):
            raise ConfigError(
                f"out: {path} is there, but no run's {CONFIG}: what is in it would be lost; "
                "expected another folder"
            )


def _check_inputs_stay(config: AnyConfig, folder: Path) -> None:
    """Raises ConfigError if the config names a file or folder that --overwrite removes."""
    removed = [(folder / name).resolve() for name in _WRITTEN]
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name == "out" or item.metadata.get("metavar") not in ("FILE", "DIR") or not value:
            continue
        if any(Path(value).resolve().is_relative_to(path) for path in removed):
            raise ConfigError(
                f"{item.name}: got {value!r}, which --overwrite removes with the run in {folder}; "
                "expected a copy somewhere else"
            )


def run_environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run ran on: `ndfast env`, and what its training adds."""
    return describe_environment() | {
        "packages": _versions(),
        "git": _git_revision(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
    }


def _versions() -> dict[str, str]:
    """Of the packages that a training may use, those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """Of the checkout that ndfast runs from; None for an installed one."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
