"""What is built and installed, with nvcc, a C++ compiler and torch to build against and without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
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


def build(folder: Path, **environment: str) -> tuple[int, str]:
    """Builds a wheel from a copy of the sources; returns the exit status and what was printed."""
    source = folder / "source"
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("ndfast", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v",
            "--wheel-dir", str(folder), str(source),
        ],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def build_wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what its build printed."""
    status, printed = build(folder, **environment)
    assert status == 0, printed[-3000:]
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


def path_without_nvcc(folder: Path) -> str:
    """Where nvcc shares a folder with the compiler, it is hidden by a folder of links."""
    folder.mkdir()
    for programs in os.environ["PATH"].split(os.pathsep):
        for program in Path(programs).glob("*") if Path(programs).is_dir() else ():
            link = folder / program.name
            if program.name != "nvcc" and not link.exists():
                link.symlink_to(program)
    return str(folder)


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler here"
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")


@needs_compiler
@pytest.mark.slow
def test_with_a_compiler_and_without_nvcc(tmp_path: Path) -> None:
    path = path_without_nvcc(tmp_path / "tools")
    wheel, printed = build_wheel(tmp_path, PATH=path, CUDA_HOME="", NDFAST_NATIVE="1")
    assert "without the compiled CUDA kernels: there is no nvcc" in printed
    assert "-cp310-abi3-" in wheel.name
    assert "ndfast/_C.abi3.so" in ZipFile(wheel).namelist()
    assert use_wheel(wheel).split()[-2:] == ["True", "None"]


@needs_compiler
def test_cuda_that_is_asked_for_and_cannot_be_built_is_an_error(tmp_path: Path) -> None:
    path = path_without_nvcc(tmp_path / "tools")
    status, printed = build(tmp_path / "none", PATH=path, CUDA_HOME="", NDFAST_CUDA="1")
    assert status != 0
    assert "NDFAST_CUDA=1, but there is no nvcc" in printed
    broken = tmp_path / "cuda" / "bin" / "nvcc"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    cuda_home = str(tmp_path / "cuda")
    status, printed = build(tmp_path / "broken", CUDA_HOME=cuda_home, NDFAST_CUDA="1")
    assert status != 0
    assert f"NDFAST_CUDA=1, but {broken} does not work: broken" in printed


@needs_compiler
@needs_nvcc
@pytest.mark.slow
def test_the_wheel_with_cuda(tmp_path: Path) -> None:
    wheel, _ = build_wheel(tmp_path, NDFAST_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0")
    assert "-cp310-abi3-" in wheel.name
    kinds = (".py", ".toml", ".html")  # recipes, and the page of a run
    files = [path for path in (ROOT / "ndfast").rglob("*") if path.suffix in kinds]
    sources = {str(path.relative_to(ROOT)) for path in files}
    content = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert content == sources | {"ndfast/_C.abi3.so", "ndfast/py.typed"}
    assert use_wheel(wheel).split()[-2:] == ["True", "None"]  # on a torch without CUDA too

    # CPython's limited API, of 3.10; a manylinux of this machine's age; nothing of CUDA to find.
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    tools = Path(sys.executable).parent
    audited = run([tools / "abi3audit", "--strict", "--verbose", wheel])
    assert audited.returncode == 0, audited.stdout + audited.stderr
    shown = run([tools / "auditwheel", "show", wheel]).stdout
    assert re.search(r"constrains the platform tag to\s+\"manylinux_2_", shown), shown
    elffile = pytest.importorskip("elftools.elf.elffile", reason="auditwheel brings it")
    with (tmp_path / "site" / "ndfast" / "_C.abi3.so").open("rb") as library:
        dynamic = elffile.ELFFile(library).get_section_by_name(".dynamic")
        needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
    assert not {name for name in needed if re.match("libcu|libtorch_cuda|libpython", name)}, needed


@needs_compiler
@needs_nvcc
@pytest.mark.slow
def test_kernels_that_do_not_compile_leave_the_cpu_library(tmp_path: Path) -> None:
    header = tmp_path / "include" / "cuda_fp16.h"
    header.parent.mkdir()
    header.write_text("#error broken\n")
    # Every nvcc looks here first.
    wheel, printed = build_wheel(tmp_path, NVCC_PREPEND_FLAGS=f"-I{header.parent}")
    assert "without the compiled CUDA kernels: their compilation failed" in printed
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
