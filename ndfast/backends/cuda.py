"""CUDA C++ kernels (csrc/cuda) on an NVIDIA GPU, in the same compiled library as the CPU's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndfast.backends import Gradients, gpu, native
from ndfast.backends.reference import add_by_class

is_unscaled = False
installed = native.installed  # where it cannot run then, that is nobody's choice
# The CUDA of its kernels, the least release of the driver for them, the CUDA of this driver: 13000,
# 580, 12040. 0: there is none.
_cuda, _least_driver, _driver_cuda = 0, 0, 0
if native.missing is not None:
    missing: str | None = native.missing
elif not hasattr(torch.ops.ndfast_cuda, "forward"):
    missing = "the compiled library has no CUDA part; install ndfast where nvcc is"
    installed = False
elif torch.version.hip is not None:
    missing = "its kernels are for NVIDIA GPUs"
    installed = False
else:
    missing = None
    forward = torch.ops.ndfast_cuda.forward.default
    finish_gradient_ = torch.ops.ndfast_cuda.finish_gradient_.default
    _backward = torch.ops.ndfast_cuda.backward.default
    _cuda, _least_driver, _driver_cuda = torch.ops.ndfast_cuda.versions()


def unusable(device: torch.device) -> str | None:
    """Needs the compiled library's CUDA part, a CUDA device and a driver that run it."""
    if missing is not None:
        return missing
    return (
        gpu.not_there(device)
        or gpu.too_old(device)
        or _driver_too_old()
        or _why_not_launched(device)
    )


def facts() -> dict[str, Any]:
    """What the library's CUDA part was built for, and the driver here; as `ndfast env` has it."""
    gpus = torch.ops.ndfast_cuda.architectures().split(",") if missing is None else []
    return {
        "kernels_cuda": _version(_cuda),
        "kernels_gpus": [f"sm_{int(gpu) // 10}" for gpu in gpus],
        "kernels_driver": str(_least_driver) if _least_driver else None,
        "driver": gpu.driver_release(),
        "driver_cuda": _version(_driver_cuda),
    }


def _version(number: int) -> str | None:
    """12040 is "12.4", 0 is none."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _driver_too_old() -> str | None:
    """Why the driver is, None where it is not: within a major version any minor one serves."""
    if _driver_cuda == 0 or _driver_cuda // 1000 >= _cuda // 1000:
        return None
    release = gpu.driver_release() or "of unknown release"
    needed = f"{_least_driver} or later" if _least_driver else "a later one"
    return (
        f"got NVIDIA driver {release} (CUDA {_version(_driver_cuda)}); expected {needed}, for its "
        f"kernels were built with CUDA {_version(_cuda)}: update the driver, or build ndfast by an "
        f"nvcc of CUDA {_driver_cuda // 1000}"
    )


def _why_not_launched(device: torch.device) -> str | None:
    """A GPU that the library was not compiled for, and the like."""
    index = torch.cuda.current_device() if device.index is None else device.index
    reason = torch.ops.ndfast_cuda.why_unusable(index)
    return f"its kernels cannot be launched there: {reason}" if reason else None


def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed, empty tensors for the others; see `ndfast.backends`."""
    grad_student, grad_teacher, grad_centres = _backward(*arguments)
    *_, needs_class_means = arguments
    if needs_class_means:
        grad_centres = add_by_class(grad_centres, *Gradients(*arguments).centres)
    return grad_student, grad_teacher, grad_centres
