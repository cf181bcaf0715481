"""What cannot be written is one sentence that names the file and the reason; nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import quiet_run

from ndfast.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a teacher of one epoch."""
    out = tmp_path_factory.mktemp("teacher")
    quiet_run(out, model="convnet32", method="ce", epochs=1)
    return str(out / "model.safetensors")


@contextmanager
def no_large_files() -> Iterator[None]:
    """Writing one fails, as it does on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # which ends the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_does_not_fit(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"teacher_weights": teacher, "checkpoint_every": 3}
    unbroken = quiet_run(tmp_path / "unbroken", **fields)
    broken = tmp_path / "broken"
    quiet_run(broken, **fields, max_steps=3)

    command = ["train", "--epochs", "2", "--teacher-weights", teacher, "--checkpoint-every", "3"]
    with no_large_files():
        assert main([*command, "--resume", "--out", str(broken)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    sentence = f"the checkpoint of step 6 cannot be written to {broken}/checkpoints: File too large"
    assert sentence in error
    kept = [path.name for path in (broken / "checkpoints").iterdir()]
    assert kept == ["step-0000000003"]
    assert quiet_run(broken, **fields, resume=True)["sha256"] == unbroken["sha256"]


# Runs each of the commands that it is given on a file system of its own, all of which fail.
RUN_ON_DISKS = """
import contextlib, io, json, subprocess, sys
from pathlib import Path
from ndfast.cli import main
told = []
for disk, kilobytes, arguments in json.loads(sys.argv[1]):
    Path(disk).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk], check=True)
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = main(arguments)
    told.append((status, stderr.getvalue()))
print(json.dumps(told))
"""


def on_disks(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs Python where it may mount file systems."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        possible = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", "/mnt"]).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("needs a file system of its own, which may not be mounted here")
    return subprocess.run(
        [*alone, sys.executable, *arguments],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


CASES = [
    ("train", 4, "run/class_means.safetensors", ""),
    ("train", 40, "run/checkpoints", "the checkpoint of step 11 cannot be written"),
    ("train", 300, "run/", "the results cannot be written"),
    ("compare --methods kd --seeds 1", 4, "run/class_means.safetensors", ""),
]


def test_a_full_disk(teacher: str, tmp_path: Path) -> None:
    commands = []
    for number, (command, kilobytes, _, _) in enumerate(CASES):
        disk = tmp_path / str(number)
        flags = ["--epochs", "2", "--teacher-weights", teacher, "--out", str(disk / "run")]
        commands.append((str(disk), kilobytes, [*command.split(), *flags]))
    done = on_disks(["-c", RUN_ON_DISKS, json.dumps(commands)])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for (disk, *_), (_, _, name, what), (status, told) in zip(commands, CASES, found, strict=True):
        assert status == 1, told
        assert told.count("\n") == 1, told
        assert what in told
        assert f"{disk}/{name}" in told
        assert "the disk is full: No space left on device" in told


@pytest.mark.long
def test_the_other_process_adds_one_sentence(teacher: str, tmp_path: Path) -> None:
    """Not the traceback, nor the words, of the connection that it lost.

    It tells of the disk too where it has come to write as well.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_and_launch = (
        "import os, subprocess, sys\n"
        'subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", sys.argv[1]])\n'
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ndfast", "train"]
    arguments = [*launch, "--teacher-weights", teacher, "--out", str(disk / "run")]
    done = on_disks(["-c", mount_and_launch, str(disk), *arguments])
    assert done.returncode == 1, done.stderr
    assert f"cannot be written to {disk}/run/checkpoints: the disk is full" in done.stderr
    assert "ndfast/train/" not in done.stderr
    assert "peer" not in done.stderr
