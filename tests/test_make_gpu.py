"""`make gpu`: what a part's failure does, which parts are chosen, and what no GPU does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ["build", "smoke", "telling", "test", "sanitize", "rest", "report"]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def make_gpu(
    folder: Path, arguments: str = "", failing: str = "no call at all", gpu: str = "echo Some GPU"
) -> subprocess.CompletedProcess[str]:
    """Runs it with a script in Python's place, which tells what it is called with, for all else.

    Args:
        folder: of logs, results and the script.
        arguments: ARGS.
        failing: a call with this in it fails.
        gpu: what the script does when it is asked for the GPU's name.
    """
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *run_parts.py*) exec {sys.executable} "$@";;'
        f" *get_device_name*) {gpu}; exit;; esac\n"
        f'echo "run $*" >&2\ncase "$*" in *{failing!r}*) exit 7;; esac\n'
    )
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "gpu", f"PYTHON={python}", f"ARGS={arguments}"]
    command += [f"GPU_LOGS={folder / 'logs'}", f"GPU_RESULTS={folder / 'results'}"]
    # Of the make that may run these tests nothing is taken over.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def outcomes(folder: Path) -> dict[str, str]:
    """By part, in the order in which they began."""
    lines = (folder / "logs" / "outcomes.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {line["part"]: line["ended"] for line in found if "part" in line}


@pytest.mark.parametrize(
    ("failing", "failed"),
    [
        ("no call at all", ""),
        ("setup.py", "build"),  # Triton's kernels need none of it
        ("--ignore", "test"),  # the other half of a part
    ],
)
def test_the_other_parts_go_on(failing: str, failed: str, tmp_path: Path) -> None:
    done = make_gpu(tmp_path, failing=failing)
    assert (done.returncode != 0) == bool(failed)
    found = outcomes(tmp_path)
    assert list(found) == PARTS
    assert [name for name, ended in found.items() if ended == "failed"] == [*failed.split()]
    assert (f"First that did not pass: {failed}, failed\n" in done.stdout) == bool(failed)


def test_chosen_parts(tmp_path: Path) -> None:
    done = make_gpu(tmp_path, "test smoke --seconds 570")
    assert done.returncode == 0
    assert list(outcomes(tmp_path)) == ["smoke", "test"]  # in their order
    smoke = (tmp_path / "logs" / "smoke.log").read_text()
    assert re.search(r"^run .* -m smoke *$", smoke, flags=re.M), smoke  # the choice stays outside


@pytest.mark.parametrize(
    "gpu", ["echo no CUDA GPU >&2; false", "echo ModuleNotFoundError >&2; false"]
)
def test_without_a_gpu_a_sentence(gpu: str, tmp_path: Path) -> None:
    done = make_gpu(tmp_path, gpu=gpu)
    assert done.returncode != 0
    assert done.stdout == ""
    reason = gpu.removeprefix("echo ").partition(" >&2")[0]
    said = done.stderr.splitlines()[0]
    assert said == f"make gpu needs PyTorch and a CUDA GPU; here it got: {reason}"
    assert not (tmp_path / "logs").exists()


def test_every_test_marked_gpu_is_among_those_that_it_runs() -> None:
    places = re.findall(r"^GPU_TESTS := (.*)", (ROOT / "Makefile").read_text(), flags=re.M)[0]
    taken = {ROOT / place for place in places.split()}
    for path in (ROOT / "tests").rglob("*.py"):
        if re.search(r"^(pytestmark = |@)pytest\.mark\.gpu", path.read_text(), flags=re.M):
            assert taken & {path, *path.parents}, path
