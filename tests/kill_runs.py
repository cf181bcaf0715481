"""Kills a run with SIGKILL again and again, resumes it each time, and compares what it ends with.

    python tests/kill_runs.py TEACHER_WEIGHTS FOLDER KILLS SEED

A fresh process, which imports everything once and forks each run: so a kill comes at any moment of
the run itself. Prints one line of JSON: the unbroken run's hash, and of every broken one its hash,
its kills, and how often it went on behind the newest checkpoint that it had told of (never).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.recipes import load_recipe
from ndfast.train.runs.records import read_log
from ndfast.train.runs.run import run


def config(weights: str, out: Path) -> TrainConfig:
    """Enough steps to be killed in, a checkpoint every other, and all that has a state."""
    return TrainConfig(
        **load_recipe("digits")
        | {
            "epochs": 3,
            "teacher_weights": weights,
            "ema": 0.9,
            "checkpoint_every": 2,
            "keep_checkpoints": 2,
            "resume": True,
            "out": str(out),
        }
    )


def fork_run(chosen: TrainConfig) -> int:
    """Starts a run in a process of its own; returns its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(chosen, Console(quiet=True))
            code = 0
        finally:
            os._exit(code)
    return child


def checkpoints_told(out: Path) -> list[dict[str, Any]]:
    """The log's records of checkpoints and of going on."""
    try:
        records = read_log(out / "log.jsonl")
    except FileNotFoundError:
        return []
    return [record for record in records if record["event"] in ("checkpoint", "resume")]


def break_run(chosen: TrainConfig, kills: int, longest: float, rng: random.Random) -> dict:
    """Kills a run up to ``kills`` times, each within ``longest`` seconds, then lets it end."""
    out, killed, lost = Path(chosen.out), 0, 0
    while killed < kills:
        told = [record["step"] for record in checkpoints_told(out)]
        child = fork_run(chosen)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break  # it was over
        killed += 1
        resumed = [record["step"] for record in checkpoints_told(out)]
        if told and resumed and max(resumed) < max(told):
            lost += 1
    _, status = os.waitpid(fork_run(chosen), 0)
    results = json.loads((out / "results.json").read_text()) if status == 0 else {"sha256": None}
    return {"sha256": results["sha256"], "kills": killed, "lost": lost}


def main(weights: str, folder: str, kills: int, seed: int) -> None:
    """Breaks runs until there were ``kills`` kills."""
    torch.set_num_threads(1)  # no threads that a fork would lose
    rng = random.Random(seed)
    unbroken = config(weights, Path(folder) / "unbroken")
    start = time.monotonic()
    assert os.waitpid(fork_run(unbroken), 0)[1] == 0
    longest = 0.7 * (time.monotonic() - start)
    expected = json.loads((Path(unbroken.out) / "results.json").read_text())["sha256"]
    broken: list[dict] = []
    while (left := kills - sum(found["kills"] for found in broken)) > 0:
        chosen = config(weights, Path(folder) / f"broken-{len(broken)}")
        broken.append(break_run(chosen, min(left, 20), longest, rng))
    print(json.dumps({"sha256": expected, "broken": broken}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
