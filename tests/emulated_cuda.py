"""The CUDA kernels on the CPU: csrc/cuda, compiled by the C++ compiler against cuda_emulator/."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler, load

from ndfast import dispatch
from ndfast.backends import cuda

ROOT = Path(__file__).parent.parent
EMULATOR = ROOT / "tests" / "cuda_emulator"


def compile_and_load(folder: Path) -> None:
    """The ops of csrc/cuda for CPU tensors, under another name; skips without a compiler."""
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here")
    load(
        "ndfast_emulated_cuda",
        [str(EMULATOR / "whole.cpp")],
        extra_include_paths=[str(EMULATOR), str(ROOT / "csrc" / "cuda")],
        extra_cflags=[
            # With its symbols visible, so that it can tell which kernel was launched.
            "-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000",
            "-DNDFAST_CUDA_LIBRARY=ndfast_emulated_cuda", "-DNDFAST_CUDA_KEY=CPU",
        ],
        build_directory=str(folder),
        is_python_module=False,
    )  # fmt: skip


def kernels() -> set[str]:
    """The mangled names of all kernels that have been compiled; skips without nm."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not there to read the kernels' names")
    (library,) = (path for path in torch.ops.loaded_libraries if "emulated_cuda" in path)
    command = ["nm", "--dynamic", "--defined-only", library]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"_ZN6ndfast4cuda\d+(?!\d|launch_)\w+_kernelI\w+", symbols))


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Makes backend "cuda" run on CPU tensors, by the ops that have been loaded."""
    ops = torch.ops.ndfast_emulated_cuda
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "unusable", lambda device: None)
        patch.setattr(cuda, "forward", ops.forward.default, raising=False)
        patch.setattr(cuda, "finish_gradient_", ops.finish_gradient_.default, raising=False)
        patch.setattr(cuda, "_backward", ops.backward.default, raising=False)
        dispatch._choose.cache_clear()
        yield
    dispatch._choose.cache_clear()
