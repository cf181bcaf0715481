"""Installing where there is no C++ compiler, no nvcc, no torch to build against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
USE_IT = """
import torch, ndfast
s, c = torch.randn(3, 5, requires_grad=True), torch.randn(2, 5)
loss = ndfast.nd_loss(s, None, c, torch.tensor([0, 1, 1]))
loss.backward()
print(ndfast.__file__, s.grad is not None, ndfast.available_backends()["native"])
"""


def build_wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """Builds a wheel from a copy of the sources; returns it and what the build printed."""
    source = folder / "source"
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("ndfast", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v",
            "--wheel-dir", str(folder), str(source),
        ],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    printed = build.stdout + build.stderr
    assert build.returncode == 0, printed[-3000:]
    (wheel,) = folder.glob("*.whl")
    return wheel, printed


def use_wheel(wheel: Path) -> str:
    """Calls the loss from the unpacked wheel in a fresh process; returns what that printed."""
    site = wheel.parent / "site"
    ZipFile(wheel).extractall(site)
    # -S: an editable install of this checkout would lend the wheel its library.
    packages = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    result = subprocess.run(
        [sys.executable, "-S", "-c", USE_IT], cwd=wheel.parent, check=False, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": packages},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert str(site) in result.stdout
    return result.stdout


@pytest.mark.slow
def test_with_a_compiler_and_without_nvcc(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler here")
    # Where nvcc shares a folder with the compiler, it is hidden by a folder of links.
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            link = tools / program.name
            if program.name != "nvcc" and not link.exists():
                link.symlink_to(program)
    wheel, _ = build_wheel(tmp_path, PATH=str(tools), CUDA_HOME="", NDFAST_NATIVE="1")
    assert "-cp310-abi3-" in wheel.name
    assert "ndfast/_C.abi3.so" in ZipFile(wheel).namelist()
    assert use_wheel(wheel).split()[-2:] == ["True", "None"]


def test_without_a_compiler(tmp_path: Path) -> None:
    wheel, printed = build_wheel(tmp_path, CXX="/nowhere/c++")
    assert "without the compiled CPU library: there is no C++ compiler" in printed
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in ZipFile(wheel).namelist() if name.endswith(".so")]
    assert "the compiled library is not there" in use_wheel(wheel)


def test_with_a_compiler_that_fails(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    compiler.chmod(0o755)
    wheel, printed = build_wheel(tmp_path, CXX=str(compiler))
    assert "without the compiled CPU library: its compilation failed" in printed
    assert "the compiled library is not there" in use_wheel(wheel)


def test_without_torch_to_build_against(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ImportError('hidden')\n")
    wheel, printed = build_wheel(tmp_path, PYTHONPATH=str(hidden))
    assert "torch is not there to build against" in printed
    assert "the compiled library is not there" in use_wheel(wheel)
