"""Allocates outputs, brings arguments to what the kernels take, and launches them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ndfast.backends.reference import MEAN, NONE, accumulation_dtype
from ndfast.backends.triton import launch_table
from ndfast.backends.triton.backward_kernels import backward_kernel, class_means_backward_kernel
from ndfast.backends.triton.forward_kernel import forward_kernel
from ndfast.backends.triton.launch_table import LaunchConfig

# Equal rows of student and teacher must have bitwise equal norms, for a tie belongs to the student:
# multiplications and additions are not fused. Memory bounds the kernels, so this costs no time that
# shows; and Triton's default changes in 3.10.
_ENABLE_FP_FUSION = False
_MAX_PROGRAMS_PER_SM = 32  # more are not resident at once on sm_80 to sm_100
_CLASS_MEANS_ROWS, _CLASS_MEANS_BLOCK_D = 32, 64  # summed over rows: columns spread over programs


def forward(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
    sample_weight: Tensor | None,
    weight: float,
    reduction: int,
    ignore_index: int,
    eps: float,
    num_coefficients: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and what backward needs, in one launch; see `ndfast.backends`."""
    N, D = student.shape
    dtype = accumulation_dtype(student)
    loss = student.new_empty((N,) if reduction == NONE else (), dtype=dtype)
    scale = student.new_empty((), dtype=dtype)
    coefficients = student.new_empty((num_coefficients, N), dtype=dtype)
    grad_student = student.new_empty((N, D) if gradient else (0,))

    student, class_means = _rows(student), _rows(class_means)
    features, norms = _features_and_norms(teacher)
    with torch.cuda.device_of(student):
        *strides, alignment = _row_strides(student, features, class_means)
        partials, ticket = (None, None) if reduction == NONE else _workspace(student.device)
        arguments = (
            student, features, norms, class_means,
            _vector(target), _vector(target_b), _vector(lam), _vector(sample_weight),
            loss, scale, coefficients, grad_student if gradient else None, partials, ticket,
            *strides, N, class_means.shape[0], ignore_index,
            lam_scalar, weight / max(N, 1) if reduction == MEAN else weight, eps,
        )  # fmt: skip
        constants = {
            "ALIGN": alignment,
            "REDUCTION": reduction,
            "NUM_COEFFICIENTS": num_coefficients,
        }
        _launch(forward_kernel, student, arguments, constants)
    return loss, scale, coefficients, grad_student


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
    needs_student: bool,
    needs_teacher: bool,
    needs_class_means: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed, empty tensors for the others; see `ndfast.backends`."""
    grad_student = student.new_empty(student.shape if needs_student else (0,))
    grad_teacher = student.new_empty(0)
    if needs_teacher:
        assert teacher is not None
        grad_teacher = teacher.new_empty(teacher.shape)
    grad_class_means = class_means.new_empty(class_means.shape if needs_class_means else (0,))

    needs_centres = needs_class_means and target is None
    student, class_means = _rows(student), _rows(class_means)
    features = _rows(teacher) if teacher is not None and needs_teacher else None
    labels = _vector(target), _vector(target_b), _vector(lam)
    if needs_student or needs_teacher or needs_centres:
        gradients = (
            grad_student if needs_student else None,
            grad_teacher if needs_teacher else None,
            grad_class_means if needs_centres else None,
        )
        _launch_backward(
            grad_loss, scale, coefficients, student, features, class_means, labels, lam_scalar,
            gradients, finished=False,
        )  # fmt: skip
    if needs_class_means and not needs_centres:
        _launch_class_means_backward(
            grad_loss, scale, coefficients, student, class_means, labels, lam_scalar,
            grad_class_means,
        )  # fmt: skip
    return grad_student, grad_teacher, grad_class_means


def finish_gradient_(
    grad_student: Tensor,
    grad_loss: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    student: Tensor,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
) -> None:
    """In place; a kernel looks at the upstream gradient, so that the host need not wait for it."""
    if len(student) == 0:  # the upstream gradients of no row cannot be looked at
        return
    _launch_backward(
        grad_loss, scale, coefficients, _rows(student), None, _rows(class_means),
        (_vector(target), _vector(target_b), _vector(lam)), lam_scalar,
        (grad_student, None, None), finished=True,
    )  # fmt: skip


def _launch_backward(
    grad_loss: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    labels: tuple[Tensor | None, Tensor | None, Tensor | None],
    lam_scalar: float,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    finished: bool,
) -> None:
    """``gradients``: of student, teacher and the rows' centres, None for those not wanted."""
    reads_centres = gradients[0] is not None or gradients[2] is not None
    (N, D), K = student.shape, class_means.shape[0]
    *strides, alignment = _row_strides(student, teacher, class_means)
    arguments = (
        student, teacher, class_means if reads_centres else None, *labels,
        grad_loss, scale, coefficients, *gradients, *strides, _upstream_stride(grad_loss),
        N, K, lam_scalar,
    )  # fmt: skip
    constants = {"ALIGN": alignment, "FINISHED": finished}
    with torch.cuda.device_of(student):
        if finished:  # usually done at a glance, which is nothing to tune by
            config = launch_table.default_config(D, student.itemsize)
            _launch_with(config, backward_kernel, student, arguments, constants)
        else:
            _launch(backward_kernel, student, arguments, constants)


def _launch_class_means_backward(
    grad_loss: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    student: Tensor,
    class_means: Tensor,
    labels: tuple[Tensor | None, Tensor | None, Tensor | None],
    lam_scalar: float,
    grad_class_means: Tensor,
) -> None:
    """Sorts the rows by label, so that one program can add a class's rows up in a fixed order."""
    (N, D), K = student.shape, class_means.shape[0]
    keys = torch.cat([label.long() for label in labels[:2] if label is not None])
    keys, order = torch.sort(keys, stable=True)
    # Labels below 0 stand before the first bound, those from K on behind the last.
    bounds = torch.searchsorted(keys, torch.arange(K + 1, device=keys.device))
    *strides, alignment = _row_strides(student, class_means)
    with torch.cuda.device_of(student):
        class_means_backward_kernel[(K, triton.cdiv(D, _CLASS_MEANS_BLOCK_D))](
            student, class_means, *labels, grad_loss, scale, coefficients,
            order, bounds, grad_class_means,
            *strides, _upstream_stride(grad_loss), N, K, lam_scalar, D=D, ALIGN=alignment,
            ROWS=_CLASS_MEANS_ROWS, BLOCK_D=_CLASS_MEANS_BLOCK_D,
            num_warps=4, enable_fp_fusion=_ENABLE_FP_FUSION,
        )  # fmt: skip


def _launch(
    kernel: Any, student: Tensor, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launches a kernel that may be run many times over, as the launch table says."""

    def launch(config: LaunchConfig) -> None:
        _launch_with(config, kernel, student, arguments, constants)

    if launch_table.AUTOTUNE and not _is_capturing(student.device):
        config = launch_table.measured_config(
            _tuning_key(kernel, student, arguments, constants),
            student.shape[1], student.itemsize, launch,
        )  # fmt: skip
    else:
        config = launch_table.default_config(student.shape[1], student.itemsize)
    launch(config)


def _launch_with(
    config: LaunchConfig,
    kernel: Any,
    student: Tensor,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:
    N, D = student.shape
    programs_per_sm = min(config.programs_per_sm, _MAX_PROGRAMS_PER_SM)
    programs = min(triton.cdiv(N, config.rows), programs_per_sm * _num_sms(student.device))
    kernel[(max(programs, 1),)](
        *arguments, D=D, ROWS=config.rows, BLOCK_D=config.block_d, **constants,
        num_warps=config.num_warps, enable_fp_fusion=_ENABLE_FP_FUSION,
    )  # fmt: skip


def _tuning_key(
    kernel: Any, student: Tensor, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> tuple[Any, ...]:
    """The same for calls that run the same code on batches of about one size."""
    dtypes = [a.dtype if isinstance(a, Tensor) else None for a in arguments]
    N, D = student.shape
    return kernel, student.device, N.bit_length(), D, *dtypes, *constants.values()


def _workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """Partial sums and a ticket of 0, for the current stream of the current device."""
    if _is_capturing(device):
        # The graph replays on any stream, at the same time as eager calls on this one.
        return _new_workspace(device)
    if device.type != "cuda":
        return _stream_workspace(device, 0)
    return _stream_workspace(device, torch.cuda.current_stream(device).cuda_stream)


def _new_workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    programs = _MAX_PROGRAMS_PER_SM * _num_sms(device)
    partials = torch.empty(2 * programs, dtype=torch.float64, device=device)
    return partials, torch.zeros((), dtype=torch.int32, device=device)


@cache
def _stream_workspace(device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    return _new_workspace(device)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _rows(matrix: Tensor) -> Tensor:
    """[N, D] with neighbouring elements in a row."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _vector(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _features_and_norms(teacher: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if teacher is None:
        return None, None
    return (None, teacher.contiguous()) if teacher.dim() == 1 else (_rows(teacher), None)


def _row_strides(*matrices: Tensor | None) -> tuple[int, ...]:
    """The row strides counted in alignments, 0 for None, and last the alignment.

    The alignment is a power of two that divides all row strides; beyond 16 elements it brings
    nothing more.
    """
    strides = [0 if matrix is None else matrix.stride(0) for matrix in matrices]
    alignment = math.gcd(16, *strides)
    return *(stride // alignment for stride in strides), alignment


def _upstream_stride(grad_loss: Tensor) -> int:
    """0 where one upstream gradient holds for all rows, expanded ones included."""
    return grad_loss.stride(0) if grad_loss.dim() else 0
