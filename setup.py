"""Builds the compiled library where a C++ compiler and torch are there; installs without otherwise.

Its CPU part needs the compiler alone, its CUDA part nvcc as well, but no GPU and no CUDA build of
torch. Everything else about the package stands in pyproject.toml. Environment variables:

- NDFAST_NATIVE, NDFAST_CUDA: 0 leaves the library, or its CUDA part, out; 1 fails where it cannot
  be built; by default its absence is said and the installation goes on.
- TORCH_CUDA_ARCH_LIST: the GPUs to compile for, as PyTorch has it ("9.0" or "8.0;9.0+PTX").
- MAX_JOBS: compile jobs of ninja.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from glob import glob
from typing import Any

import setuptools

LIMITED_API = "0x030A0000"  # CPython 3.10
TORCH_FLOOR = "0x020a000000000000"  # 2.10, the stable ABI's version
# Machine code of each that nvcc knows; and PTX, for GPUs between them and later ones, of the newest
# up to 10.0: that of 12.0 would leave out 11.0.
GPUS = ("8.0", "9.0", "10.0", "12.0")
PTX_GPUS = GPUS[:3]
SPEED = ["-O3", "-std=c++17"]
SETUPTOOLS_FLOOR = 77  # the first that reads the licence in pyproject.toml


@dataclass(frozen=True)
class CudaToolkit:
    """Where nvcc and what belongs to it are, and which GPUs it knows."""

    home: str
    include: list[str]
    lib: list[str]
    gpus: str  # that are compiled for by default

    @classmethod
    def find(cls) -> CudaToolkit:
        """Asks nvcc itself, which may be a link, a wrapper or part of a Python package."""
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        nvcc = shutil.which(os.path.join(home, "bin", "nvcc") if home else "nvcc")
        if nvcc is None:
            raise RuntimeError("there is no nvcc")
        told = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull],
            capture_output=True, text=True, check=False,
        ).stderr  # fmt: skip

        def folders(variable: str, option: str) -> list[str]:
            line = re.search(rf"^#\$ {variable}=(.*)$", told, re.M)
            return re.findall(rf'{option}([^"\s]+)', line[1]) if line else []

        if not (top := folders("TOP", "")):
            raise RuntimeError(f"{nvcc} does not work: {told.strip()[-200:]}")
        return cls(
            os.path.realpath(top[0]), folders("INCLUDES", "-I"), folders("LIBRARIES", "-L"),
            default_gpus(nvcc),
        )  # fmt: skip


def default_gpus(nvcc: str) -> str:
    """As TORCH_CUDA_ARCH_LIST has them."""
    told = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False
    ).stdout.split()  # one before CUDA 11 has no such option
    known = [gpu for gpu in GPUS if "compute_" + gpu.replace(".", "") in told]
    with_ptx = [gpu for gpu in known if gpu in PTX_GPUS][-1:]
    if not with_ptx:
        raise RuntimeError(f"{nvcc} compiles for none of {', '.join(PTX_GPUS)}")
    return ";".join(gpu + "+PTX" * (gpu in with_ptx) for gpu in known)


def headers() -> list[str]:
    return sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/cuda/*.cuh"))


def extension(toolkit: CudaToolkit | None) -> Any:
    """The library, with its CUDA part where there is a toolkit."""
    from torch.utils.cpp_extension import CppExtension

    prefix_map = f"-ffile-prefix-map={os.getcwd()}/="
    options: dict[str, Any] = {
        "sources": ["csrc/bindings.cpp", *glob("csrc/cpu/*.cpp")],
        # No -march=native: one binary for every processor, csrc/cpu/capability.cpp chooses.
        # -g0: most Pythons' own flags have -g, and debug information was 8 MB of the library's 21.
        "extra_compile_args": {
            "cxx": [
                *SPEED, "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
                "-Wall", "-Wextra", "-Wno-psabi", prefix_map,
            ],
            # A row's few roots and quotients to 2 units in the last place, without branches.
            "nvcc": [
                *SPEED, "-prec-div=false", "-prec-sqrt=false",
                "-Xcompiler", f"-fvisibility=hidden,{prefix_map}",
            ],
        },
    }  # fmt: skip
    if toolkit is not None:
        options["sources"] += glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu")
        options["include_dirs"] = toolkit.include
        options["library_dirs"] = toolkit.lib
        # Static, so that the library also loads beside a torch without CUDA.
        options["libraries"] = ["cudart_static", "dl", "rt", "pthread"]
    return CppExtension(
        "ndfast._C",
        sorted(options.pop("sources")),
        depends=headers(),
        py_limited_api=True,
        define_macros=[("Py_LIMITED_API", LIMITED_API), ("TORCH_TARGET_VERSION", TORCH_FLOOR)],
        **options,
    )


def is_wanted(part: str) -> bool:
    return os.environ.get(part, "auto") != "0"


def say_missing(part: str, reason: str) -> None:
    """Raises where the part was asked for by name."""
    if os.environ.get(part) == "1":
        raise RuntimeError(f"{part}=1, but {reason}")
    what = {"NDFAST_NATIVE": "compiled CPU library", "NDFAST_CUDA": "compiled CUDA kernels"}[part]
    print(f"ndfast: installing without the {what}: {reason}. The others serve.", file=sys.stderr)


def find_toolkit() -> CudaToolkit | None:
    if not is_wanted("NDFAST_CUDA"):
        return None
    try:
        return CudaToolkit.find()
    except RuntimeError as error:
        say_missing("NDFAST_CUDA", str(error))
        return None


def arguments() -> dict[str, Any]:
    """What `setup` is called with."""
    if not is_wanted("NDFAST_NATIVE"):
        return {}
    try:
        from torch.utils import cpp_extension
    except ImportError:
        advice = "(install it first, then ndfast with --no-build-isolation)"
        say_missing("NDFAST_NATIVE", f"torch is not there to build against {advice}")
        return {}
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        say_missing("NDFAST_NATIVE", f"there is no C++ compiler ({compiler})")
        return {}

    toolkit = find_toolkit()
    if toolkit is not None:
        cpp_extension.CUDA_HOME = toolkit.home  # a torch without CUDA has not looked for it
        # Its own CUDA may be another: the library brings a runtime and links nothing of torch's.
        cpp_extension._check_cuda_version = lambda *_: None
        os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or toolkit.gpus

    class Build(cpp_extension.BuildExtension):
        """Goes on without what does not compile, unless it was asked for."""

        def build_extensions(self) -> None:
            # A torch without CUDA does not tell ninja what .cu files include.
            changed = max(map(os.path.getmtime, headers()))
            for built in glob(os.path.join(self.build_temp, "csrc", "cuda", "*.o")):
                if os.path.getmtime(built) < changed:
                    os.remove(built)
            if toolkit is not None:
                try:
                    return super().build_extensions()
                except Exception as error:
                    say_missing("NDFAST_CUDA", f"their compilation failed: {error}")
                    self.extensions = [extension(None)]
                    self.extensions[0]._full_name = "ndfast._C"
            try:
                super().build_extensions()
            except Exception as error:
                say_missing("NDFAST_NATIVE", f"its compilation failed: {error}")
                self.extensions = []

    return {
        "ext_modules": [extension(toolkit)],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


class Distribution(setuptools.Distribution):
    """Builds in place beside an older setuptools too: nothing in pyproject.toml is needed for it,
    and `make gpu` takes the packages that a machine has.
    """

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        if int(setuptools.__version__.partition(".")[0]) >= SETUPTOOLS_FLOOR:
            return super().parse_config_files(*args, **kwargs)
        if "--inplace" not in sys.argv:
            raise SystemExit(
                f"setuptools: got {setuptools.__version__}; expected {SETUPTOOLS_FLOOR} or later "
                f'(pip install "setuptools>={SETUPTOOLS_FLOOR}")'
            )
        super().parse_config_files(filenames=[])


if __name__ == "__main__":
    setuptools.setup(distclass=Distribution, **arguments())
