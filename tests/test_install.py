"""The sdist, and what is built from it where nvcc, a C++ compiler and torch are and are not."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from tarfile import TarFile
from zipfile import ZipFile

import pytest

import ndfast

ROOT = Path(__file__).parent.parent
LEFT_BEHIND = {
    "build/temp/forward.o", "dist/old.whl", "ndfast/_C.abi3.so", "ndfast/__pycache__/ops.pyc",
    "runs/log.txt", "tests/__pycache__/cases.pyc", ".venv/pyvenv.cfg",
}  # fmt: skip
USE_IT = """
import torch, ndfast
s, c = torch.randn(3, 5, requires_grad=True), torch.randn(2, 5)
loss = ndfast.nd_loss(s, None, c, torch.tensor([0, 1, 1]))
loss.backward()
print(ndfast.__file__, s.grad is not None, ndfast.available_backends()["native"])
"""


def files_of_the_checkout() -> set[str]:
    """What its folders and the top hold, without what is built there."""
    found = [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".py", ".yml")]
    found += [ROOT / name for name in ("LICENSE", "Makefile", "MANIFEST.in", ".clang-format")]
    found.append(ROOT / "requirements-dev.txt")
    for folder in ("bench", "csrc", "docs", "examples", "ndfast", "tests"):
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    built = (".pyc", ".so")
    return {str(path.relative_to(ROOT)) for path in found if path.suffix not in built}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of the checkout in which something has been built and run."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    for name in (*files_of_the_checkout(), *LEFT_BEHIND):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if name in LEFT_BEHIND else shutil.copy(ROOT / name, path)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder]
    subprocess.run(
        [*command, source], env={**os.environ, "NDFAST_NATIVE": "0"}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return folder / f"ndfast-{ndfast.__version__}.tar.gz"


def build(sdist: Path, folder: Path, **environment: str) -> tuple[int, str]:
    """Builds a wheel from the sdist; returns the exit status and what was printed."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v",
            "--wheel-dir", str(folder), str(sdist),
        ],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def build_wheel(sdist: Path, folder: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what its build printed."""
    status, printed = build(sdist, folder, **environment)
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
            if program.name != "nvcc" and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler here"
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")


def test_the_sdist_holds_the_checkout_and_nothing_that_was_built(sdist: Path) -> None:
    with TarFile.open(sdist) as archive:
        names = {info.name.partition("/")[2] for info in archive if info.isfile()}
    content = {name for name in names if not name.startswith("ndfast.egg-info/")}
    assert content == files_of_the_checkout() | {"PKG-INFO", "setup.cfg"}


@needs_compiler
@pytest.mark.parametrize("source", ["bindings.cpp", "cuda/bindings.cpp"])
def test_ops_have_their_names_by_torch_2_10_too(source: str) -> None:
    macros = """
        #define STABLE_TORCH_LIBRARY(ns, m) name = #ns
        #define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) name = #ns, key = #k
    """  # which take their arguments as they are written, as those of torch 2.10 do
    code = re.sub(r"#include.*", "", (ROOT / "csrc" / source).read_text())
    expanded = subprocess.run(
        [os.environ.get("CXX", "c++"), "-E", "-P", "-x", "c++", "-"],
        input=macros + code, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    library, device = ("ndfast_cuda", "CUDA") if "cuda" in source else ("ndfast_native", "CPU")
    assert set(re.findall(r'name = "(\w+)"', expanded)) == {library}
    assert device in re.findall(r'key = "(\w+)"', expanded)


@needs_compiler
@pytest.mark.long
def test_with_a_compiler_and_without_nvcc(sdist: Path, tmp_path: Path) -> None:
    path = path_without_nvcc(tmp_path / "tools")
    wheel, printed = build_wheel(sdist, tmp_path, PATH=path, CUDA_HOME="", NDFAST_NATIVE="1")
    assert "without the compiled CUDA kernels: there is no nvcc" in printed
    assert "-cp310-abi3-" in wheel.name
    assert b".debug_info" not in ZipFile(wheel).read("ndfast/_C.abi3.so")  # ten times its code
    assert use_wheel(wheel).split()[-2:] == ["True", "None"]


@needs_compiler
@pytest.mark.long
def test_cuda_that_is_asked_for_and_cannot_be_built_is_an_error(
    sdist: Path, tmp_path: Path
) -> None:
    path = path_without_nvcc(tmp_path / "tools")
    status, printed = build(sdist, tmp_path / "none", PATH=path, CUDA_HOME="", NDFAST_CUDA="1")
    assert status != 0
    assert "NDFAST_CUDA=1, but there is no nvcc" in printed
    broken = tmp_path / "cuda" / "bin" / "nvcc"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    cuda_home = str(tmp_path / "cuda")
    status, printed = build(sdist, tmp_path / "broken", CUDA_HOME=cuda_home, NDFAST_CUDA="1")
    assert status != 0
    assert f"NDFAST_CUDA=1, but {broken} does not work: broken" in printed


@needs_compiler
@needs_nvcc
@pytest.mark.long
def test_the_wheel_with_cuda(sdist: Path, tmp_path: Path) -> None:
    wheel, _ = build_wheel(sdist, tmp_path, NDFAST_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0")
    assert "-cp310-abi3-" in wheel.name
    kinds = (".py", ".toml", ".html")  # recipes, and the page of a run
    files = [path for path in (ROOT / "ndfast").rglob("*") if path.suffix in kinds]
    sources = {str(path.relative_to(ROOT)) for path in files}
    content = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert content == sources | {"ndfast/_C.abi3.so", "ndfast/py.typed"}
    assert b".debug_info" not in ZipFile(wheel).read("ndfast/_C.abi3.so")
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
@pytest.mark.long
def test_kernels_that_do_not_compile_leave_the_cpu_library(sdist: Path, tmp_path: Path) -> None:
    header = tmp_path / "include" / "cuda_fp16.h"
    header.parent.mkdir()
    header.write_text("#error broken\n")
    # Every nvcc looks here first.
    wheel, printed = build_wheel(sdist, tmp_path, NVCC_PREPEND_FLAGS=f"-I{header.parent}")
    assert "without the compiled CUDA kernels: their compilation failed" in printed
    assert use_wheel(wheel).split()[-2:] == ["True", "None"]


@needs_compiler
@needs_nvcc
def test_a_torch_of_another_cuda_than_nvcc_is_built_against(tmp_path: Path) -> None:
    script = (
        "import runpy, sys, torch; from torch.utils import cpp_extension; "
        "torch.version.cuda = '1.0'; "
        "cpp_extension._write_ninja_file_and_compile_objects = lambda *_, **__: sys.exit('built'); "
        f"sys.argv = ['setup.py', 'build_ext', '-b', {str(tmp_path)!r}, '-t', {str(tmp_path)!r}]; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "NDFAST_CUDA": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "built", done.stderr


@pytest.mark.parametrize(
    ("known", "gpus"),
    [
        ("80 86", "8.0+PTX"),
        ("50 52 53 60 61 62 70 72 75 80 86 87 89 90 90a", "8.0;9.0+PTX"),  # of CUDA 12.4
        ("50 70 75 80 86 87 89 90 100 101 120", "8.0;9.0;10.0+PTX;12.0"),  # of 12.8
        ("75 80 86 87 88 89 90 100 110 103 120 121", "8.0;9.0;10.0+PTX;12.0"),  # of 13.0
        ("90 100 110", "9.0;10.0+PTX"),
        ("35 70", None),
        ("", None),  # one that does not know the option
        ("120", None),  # PTX of it would leave out 11.0
    ],
)
def test_which_gpus_are_compiled_for(known: str, gpus: str | None, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    told = "\n".join(f"compute_{gpu}" for gpu in known.split())
    nvcc.write_text(f"#!/bin/sh\ntest $1 = --list-gpu-arch && echo '{told}'\n")
    nvcc.chmod(0o755)
    default_gpus = runpy.run_path(str(ROOT / "setup.py"))["default_gpus"]
    if gpus is None:
        with pytest.raises(RuntimeError, match=r"nvcc compiles for none of 8\.0, 9\.0, 10\.0"):
            default_gpus(str(nvcc))
    else:
        assert default_gpus(str(nvcc)) == gpus


def test_without_a_compiler(sdist: Path, tmp_path: Path) -> None:
    wheel, printed = build_wheel(sdist, tmp_path, CXX="/nowhere/c++")
    assert "without the compiled CPU library: there is no C++ compiler" in printed
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in ZipFile(wheel).namelist() if name.endswith(".so")]
    assert "the compiled library is not there" in use_wheel(wheel)


@pytest.mark.long
def test_with_a_compiler_that_fails(sdist: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    compiler.chmod(0o755)
    wheel, printed = build_wheel(sdist, tmp_path, CXX=str(compiler))
    assert "without the compiled CPU library: its compilation failed" in printed
    assert "the compiled library is not there" in use_wheel(wheel)


@pytest.mark.long
def test_without_torch_to_build_against(sdist: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ImportError('hidden')\n")
    wheel, printed = build_wheel(sdist, tmp_path, PYTHONPATH=str(hidden))
    assert "torch is not there to build against" in printed
    assert "the compiled library is not there" in use_wheel(wheel)


@pytest.mark.parametrize("in_place", [True, False])
def test_an_older_setuptools_builds_in_place_alone(in_place: bool, tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 3\n")  # as such a one reads ours
    command = ["build_ext", "--inplace"] if in_place else ["bdist_wheel"]
    old = (
        "import runpy, sys, setuptools; setuptools.__version__ = '65.5.0'; "
        f"sys.argv = {['setup.py', *command]!r}; runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", old], cwd=tmp_path, env={**os.environ, "NDFAST_NATIVE": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == in_place, done.stderr
    said = 'setuptools: got 65.5.0; expected 77 or later (pip install "setuptools>=77")'
    assert (said in done.stderr.splitlines()) != in_place
