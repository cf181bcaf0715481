"""Runs on digits that take a second or two, and what tests look at in their folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from rich.console import Console

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.recipes import load_recipe
from ndfast.train.runs.records import read_log
from ndfast.train.runs.run import run


def small_config(out: Path, **fields: Any) -> TrainConfig:
    """KD++ on digits for two epochs of eleven steps."""
    return TrainConfig(**{**load_recipe("digits"), "epochs": 2, "out": str(out), **fields})


def quiet_run(out: Path, **fields: Any) -> dict[str, Any]:
    """Runs `small_config`; returns its results."""
    AcceleratorState._reset_state()  # one process has one precision otherwise
    return run(small_config(out, **fields), Console(quiet=True))


def teacher_weights(out: Path) -> str:
    """The checkpoint of a teacher that an epoch has trained."""
    quiet_run(out, model="convnet32", method="ce", epochs=1)
    return str(out / "model.safetensors")


def run_in_two_processes(
    out: Path, *arguments: str, program: tuple[str, ...] = ("-m", "ndfast"), **environment: str
) -> dict[str, Any]:
    """What ``program`` with these arguments finds in two processes on the CPU; its results."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, *program, *arguments, "--out", str(out)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "results.json").read_text())


def events(out: Path, name: str) -> list[dict[str, Any]]:
    """The log's records of one event."""
    return [record for record in read_log(out / "log.jsonl") if record["event"] == name]
