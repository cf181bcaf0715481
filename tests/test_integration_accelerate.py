"""The example of a plain loop with Accelerate, in one process and in two."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ndfast

EXAMPLE = Path(__file__).parents[1] / "examples/accelerate/train.py"


def check(printed: str, processes: int, folder: Path) -> torch.Tensor:
    """Looks at what the example printed and saved; returns the class means."""
    count, accuracy = printed.strip().rsplit("\n", 1)[1].split(" processes, test accuracy ")
    assert int(count) == processes
    assert float(accuracy) > 0.6  # 0.1 by chance
    path = folder / "runs/accelerate/means.safetensors"
    assert ndfast.load_class_means_metadata(path)["counts"].sum() == 1500
    return ndfast.load_class_means(path)


def run_in_two_processes(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(EXAMPLE)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for _ in range(4):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        # Now and then PyTorch aborts a process that is over, where a thread of gloo's still has to
        # let go of a collective: pytorch/pytorch#179291.
        if "terminate called without an active exception" not in done.stderr:
            break
    return done


@pytest.mark.long
def test_two_processes_take_the_class_means_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    alone = check(capsys.readouterr().out, 1, tmp_path / "one")
    done = run_in_two_processes(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(check(done.stdout, 2, tmp_path / "two"), alone)
