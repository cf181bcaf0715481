"""What `ndfast env` tells, and what a run keeps of the machine that it happened on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import ndfast
from ndfast.backends import cuda, native
from ndfast.dispatch import available_backends, named


def describe_environment() -> dict[str, Any]:
    """Looks at the machine and at what is installed on it.

    Returns:
        What `ndfast env --json` prints:

        - ``python``, ``ndfast``, ``torch``, ``triton``, ``numpy``: versions, None where missing.
        - ``torch_cuda``: the CUDA version that torch was built with, None for one without CUDA.
        - ``kernels_cuda``: the CUDA version that the cuda backend's kernels were built with, None
          without them.
        - ``kernels_gpus``: the GPUs that they have machine code for.
        - ``kernels_driver``: the least release of the NVIDIA driver that runs them, None where
          unknown.
        - ``driver``, ``driver_cuda``: the release of this machine's driver, and the CUDA version
          that it is for; None where unknown.
        - ``platform``: the operating system, its version and the C library.
        - ``threads``: how many torch and the native backend use on the CPU.
        - ``simd``: the native backend's instruction set, avx512, avx2 or portable; None without the
          compiled library.
        - ``gpus``: the names of the CUDA devices.
        - ``backend``: the one asked for by NDFAST_BACKEND, None for the fastest that can run.
        - ``backends``: as `ndfast.available_backends` returns them, None for one that can run here,
          the reason for one that cannot.
    """
    return {
        "python": platform.python_version(),
        "ndfast": ndfast.__version__,
        "torch": str(torch.__version__),  # with the build, +cu130, which its metadata may lack
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "torch_cuda": torch.version.cuda,
        **cuda.facts(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "simd": native.capability() if native.missing is None else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backend": named(None),
        "backends": available_backends(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
