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


@pytest.mark.slow
def test_two_processes_take_the_class_means_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    alone = check(capsys.readouterr().out, 1, tmp_path / "one")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(EXAMPLE)],
        cwd=tmp_path / "two",
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(check(done.stdout, 2, tmp_path / "two"), alone)
