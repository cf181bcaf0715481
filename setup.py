"""Builds the compiled library where a C++ compiler and torch are there; installs without otherwise.

Everything else about the package stands in pyproject.toml. Environment variables:
MAX_JOBS (compile jobs of ninja), NDFAST_NATIVE=0 (leave the library out) or 1 (fail if it cannot
be built; by default its absence is said and the installation goes on).
"""

from __future__ import annotations

import os
import shutil
import sys
from glob import glob
from typing import Any

from setuptools import setup

LIMITED_API = "0x030A0000"  # CPython 3.10
TORCH_FLOOR = "0x020a000000000000"  # 2.10, the stable ABI's version


def native_extension() -> dict[str, Any]:
    """The arguments of `setup` that build the library."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
    except ImportError:
        raise RuntimeError(
            "torch is not there to build against (install it first, then ndfast with "
            "--no-build-isolation)"
        ) from None
    if shutil.which(get_cxx_compiler()) is None:
        raise RuntimeError(f"there is no C++ compiler ({get_cxx_compiler()})")

    class Optional(BuildExtension):
        """Goes on without the library where it does not compile, unless it was asked for."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if os.environ.get("NDFAST_NATIVE") == "1":
                    raise
                say_missing(f"its compilation failed: {error}")
                self.extensions = []

    extension = CppExtension(
        "ndfast._C",
        sorted(["csrc/bindings.cpp", *glob("csrc/cpu/*.cpp")]),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        py_limited_api=True,
        define_macros=[
            ("Py_LIMITED_API", LIMITED_API),
            ("TORCH_TARGET_VERSION", TORCH_FLOOR),
        ],
        # No -march=native: one binary for every processor, csrc/cpu/capability.cpp chooses.
        extra_compile_args=[
            "-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
            "-Wall", "-Wextra", "-Wno-psabi", f"-ffile-prefix-map={os.getcwd()}/=",
        ],
    )  # fmt: skip
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Optional},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def say_missing(reason: str) -> None:
    print(
        f"ndfast: installing without the compiled CPU library: {reason}. "
        "The Triton and reference backends serve.",
        file=sys.stderr,
    )


def arguments() -> dict[str, Any]:
    wanted = os.environ.get("NDFAST_NATIVE", "auto")
    if wanted == "0":
        return {}
    try:
        return native_extension()
    except RuntimeError as error:
        if wanted == "1":
            raise
        say_missing(str(error))
        return {}


setup(**arguments())
