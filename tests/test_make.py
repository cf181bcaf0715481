"""`make test-all`: which of its parts run, and what they say, comes through."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NONE_FOUND = 5  # what pytest exits with where no test was chosen
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.mark.parametrize(
    ("short", "long", "parts", "passes"),
    [
        (0, 0, 2, True),
        (NONE_FOUND, 0, 2, True),  # ARGS chose tests of one part alone
        (0, NONE_FOUND, 2, True),
        (NONE_FOUND, NONE_FOUND, 2, False),
        (1, 0, 1, False),
        (0, 1, 2, False),
        (NONE_FOUND, 1, 2, False),
    ],
)
def test_parts_of_test_all(short: int, long: int, parts: int, passes: bool, tmp_path: Path) -> None:
    script = tmp_path / "pytest"
    script.write_text(
        f'#!/bin/sh\necho "run $*"\ncase "$*" in *"-m not long -k x"*) exit {short};;'
        f' *"-m long -k x"*) exit {long};; esac\nexit 99\n'
    )
    script.chmod(0o755)
    # Of the make that may run these tests nothing is taken over.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "--silent", "--old-file=setup", "test-all", f"BIN={tmp_path}", "ARGS=-k x"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.count("run ") == parts, done.stdout + done.stderr
    assert (done.returncode == 0) == passes, done.stderr
