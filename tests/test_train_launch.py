"""`accelerate launch` starts the same training as torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import teacher_weights

ACCELERATE = [
    "accelerate.commands.launch",
    # On the CPU too: it says that each process is started as torchrun starts it.
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",  # any that is free
]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.long
def test_accelerate_launch_trains_as_torchrun_does(tmp_path: Path) -> None:
    command = ["-m", "ndfast", "train", "--epochs", "1", "--teacher-weights"]
    command += [teacher_weights(tmp_path / "teacher")]
    found = []
    for name, launch in (("accelerate", ACCELERATE), ("torchrun", TORCHRUN)):
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-m", *launch, *command, "--out", str(out)],
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((out / "results.json").read_text()))
    first, second = found
    assert first["environment"]["processes"] == second["environment"]["processes"] == 2
    assert (first["sha256"], first["test"]) == (second["sha256"], second["test"])
