"""What the library's CUDA part was built for, and the driver that it finds: no GPU is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from stand_in_driver import output_beside

from ndfast.backends import cuda, gpu

TELL = """
import json
from ndfast.backends import cuda
print(json.dumps([cuda.facts(), cuda._driver_too_old()]))
"""

needs_kernels = pytest.mark.skipif(cuda.missing is not None, reason=str(cuda.missing))


@needs_kernels
@pytest.mark.parametrize("driver", ["11.8", "12.0", "12.9", "13.0", "13.2", "14.0"])
def test_the_library_beside_a_driver(driver: str, tmp_path: Path) -> None:
    major, minor = map(int, driver.split("."))
    told = output_beside(1000 * major + 10 * minor, TELL, tmp_path)
    facts, too_old = json.loads(told)
    assert facts["driver_cuda"] == driver
    built_for = int(facts["kernels_cuda"].split(".")[0])
    assert (too_old is None) == (major >= built_for)
    if too_old is not None:
        needs = (
            f"expected {facts['kernels_driver']} or later, for its kernels were built with CUDA "
        )
        assert f"(CUDA {driver}); {needs}{facts['kernels_cuda']}: update" in too_old


@needs_kernels
def test_the_least_driver_is_kept_with_the_library() -> None:
    facts = cuda.facts()
    # https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
    least = {"12": "525", "13": "580"}
    assert facts["kernels_driver"] == least.get(facts["kernels_cuda"].split(".")[0])
    nvcc = shutil.which("nvcc")
    if nvcc is not None and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
        assert f"release {facts['kernels_cuda']}," in told.stdout


def test_without_kernels_nothing_is_told_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "missing", "it has been left out")
    for name in ("_cuda", "_least_driver", "_driver_cuda"):
        monkeypatch.setattr(cuda, name, 0)
    monkeypatch.setattr(gpu, "_DRIVER", Path("/nowhere"))
    assert cuda.facts() == {
        "kernels_cuda": None,
        "kernels_gpus": [],
        "kernels_driver": None,
        "driver": None,
        "driver_cuda": None,
    }


@pytest.mark.parametrize(
    ("told", "release"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
        (
            "NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (builder@U16)",
            "570.86.10",
        ),
        ("NVIDIA UNIX Open Kernel Module for aarch64  580.65  Release Build", "580.65"),
        ("something else", None),
    ],
)
def test_the_drivers_release_is_the_kernels_word(
    told: str, release: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "version"
    file.write_text(f"NVRM version: {told}\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1)\n")
    monkeypatch.setattr(gpu, "_DRIVER", file)
    assert gpu.driver_release() == release


def test_env_shows_them(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from ndfast.cli import main

    shown = {
        "kernels_cuda": "13.0",
        "kernels_gpus": ["sm_80", "sm_120"],
        "kernels_driver": "580",
        "driver": "550.54.15",
        "driver_cuda": None,
    }
    monkeypatch.setattr(cuda, "facts", lambda: shown)
    assert main(["env"]) == 0
    told = dict(re.findall(r"^(\w+) +(.*)$", capsys.readouterr().out, re.M))
    assert [told[name] for name in shown] == ["13.0", "sm_80, sm_120", "580", "550.54.15", "none"]
