"""CUDA C++ kernels (csrc/cuda) on an NVIDIA GPU, in the same compiled library as the CPU's."""

from __future__ import annotations

import torch
from torch import Tensor

from ndfast.backends import gpu, native

if native.missing is not None:
    missing: str | None = native.missing
elif not hasattr(torch.ops.ndfast_cuda, "forward"):
    missing = "the compiled library has no CUDA part; install ndfast where nvcc is"
else:
    missing = None
    forward = torch.ops.ndfast_cuda.forward.default
    finish_gradient_ = torch.ops.ndfast_cuda.finish_gradient_.default
    _backward = torch.ops.ndfast_cuda.backward.default


def unusable(device: torch.device) -> str | None:
    """Needs the compiled library's CUDA part, and a CUDA device that is not too old for it."""
    if missing is not None:
        return missing
    return gpu.not_there(device) or gpu.too_old(device) or _why_not_launched(device)


def _why_not_launched(device: torch.device) -> str | None:
    """A driver older than the library's CUDA, or a GPU that it was not compiled for."""
    index = torch.cuda.current_device() if device.index is None else device.index
    reason = torch.ops.ndfast_cuda.why_unusable(index)
    return f"its kernels cannot be launched there: {reason}" if reason else None


def backward(
    grad_loss: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
    grad_features: Tensor | None,
    needs_student: bool,
    needs_teacher: bool,
    needs_class_means: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed, empty tensors for the others; see `ndfast.backends`."""
    labels = order = bounds = None
    if needs_class_means and target is not None:
        labels, order, bounds = gpu.sort_by_class(target, target_b, class_means.shape[0])
    return _backward(
        grad_loss, scale, coefficients, student, teacher, class_means, target, target_b, lam,
        lam_scalar, grad_features, labels, order, bounds, needs_student, needs_teacher,
        needs_class_means,
    )  # fmt: skip
