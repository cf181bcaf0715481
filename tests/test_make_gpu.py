"""`make gpu`: which tests it runs, and what goes on after a part that failed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ["gpu-build", "gpu-test", "gpu-sanitize", "gpu-bench", "gpu-report"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("failing", "parts", "failed"),
    [
        ("no call at all", PARTS, ""),
        ("setup.py", PARTS[:1], "gpu-build"),  # without the library nothing is left to do
        ("tests/gpu", PARTS, "gpu-test gpu-sanitize"),
        ("--ignore", PARTS, "gpu-test"),  # the other half of a part
        ("bench.publish", PARTS, "gpu-report"),
    ],
)
def test_the_other_parts_go_on(failing: str, parts: list[str], failed: str, tmp_path: Path) -> None:
    python = tmp_path / "python"  # a script in its place
    python.write_text(f'#!/bin/sh\necho "run $*" >&2\ncase "$*" in *{failing!r}*) exit 7;; esac\n')
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "gpu", f"PYTHON={python}"]
    # Of the make that may run these tests nothing is taken over.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert re.findall(r"^== make (.*)", done.stdout, flags=re.M) == parts
    assert re.findall(r"^failed: (.*)", done.stdout, flags=re.M) == ([failed] if failed else [])
    assert (done.returncode == 0) == (not failed)
    assert ("run -m pytest tests/gpu/test_gpu_repeated.py" in done.stderr) == (len(parts) > 1)


def test_every_test_marked_gpu_is_among_those_that_it_runs() -> None:
    places = re.findall(r"^GPU_TESTS := (.*)", (ROOT / "Makefile").read_text(), flags=re.M)[0]
    taken = {ROOT / place for place in places.split()}
    for path in (ROOT / "tests").rglob("*.py"):
        if re.search(r"^(pytestmark = |@)pytest\.mark\.gpu", path.read_text(), flags=re.M):
            assert taken & {path, *path.parents}, path
