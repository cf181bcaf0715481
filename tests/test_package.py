"""What the package says of itself: its version, its changelog, and `ndfast env`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy
import pytest
import torch

import ndfast
from ndfast.backends import native
from ndfast.cli import main
from ndfast.environment import describe_environment

CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"
# As on a machine where neither was installed.
ENV_WITHOUT_LIBRARY_AND_TRITON = """
import sys
sys.modules["ndfast._C"] = sys.modules["triton"] = None
from ndfast.cli import main
main(["env", "--json"])
"""

# torch itself first: the rest of it (torch.compile's takes a second) waits until it is needed.
PACKAGES_THAT_COME_WITH_NDFAST = """
import sys, torch, numpy
before = set(sys.modules)
import ndfast
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(packages - sys.stdlib_module_names))
"""


def test_to_import_it_is_cheap() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PACKAGES_THAT_COME_WITH_NDFAST],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["ndfast", "safetensors"]


def test_the_changelogs_newest_entry_is_that_of_the_version() -> None:
    newest, *older = re.findall(r"^## (.+)$", CHANGELOG.read_text(encoding="utf-8"), re.M)
    release, in_development, _ = ndfast.__version__.partition(".dev0")
    assert re.fullmatch(r"\d+\.\d+\.\d+", release)
    if in_development:
        assert newest == "Unreleased"
    else:
        older.insert(0, newest)
        assert newest.startswith(f"{release} - ")
    versions = [entry.split(" - ")[0] for entry in older]
    assert versions == sorted(versions, key=lambda v: [int(n) for n in v.split(".")], reverse=True)
    days = [date.fromisoformat(entry.split(" - ")[1]) for entry in older]
    assert days == sorted(days, reverse=True)


def test_env_gives_what_is_documented(capsys: pytest.CaptureFixture) -> None:
    assert main(["env", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    documented = re.findall(r"``(\w+)``", describe_environment.__doc__ or "")
    assert sorted(told) == sorted(documented)
    assert told["ndfast"] == ndfast.__version__
    assert (told["torch"], told["numpy"]) == (torch.__version__, numpy.__version__)
    assert told["torch_cuda"] == torch.version.cuda
    assert told["simd"] == (None if native.missing else native.capability())
    assert len(told["gpus"]) == torch.cuda.device_count()
    assert list(told["backends"]) == ["native", "cuda", "triton", "reference"]
    assert told["backends"]["reference"] is None


def test_env_says_why_what_is_missing_cannot_run() -> None:
    command = [sys.executable, "-c", ENV_WITHOUT_LIBRARY_AND_TRITON]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert told["simd"] is None
    reasons = told["backends"]
    assert reasons["native"].startswith("the compiled library is not there")
    assert "the compiled library is not there" in reasons["cuda"]
    assert reasons["triton"].startswith("triton cannot be imported")
    assert reasons["reference"] is None
