"""Allocates outputs, brings arguments to what the kernels take, and launches them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ndfast.backends.reference import (
    MEAN,
    NONE,
    accumulation_dtype,
    add_by_class,
)
from ndfast.backends.triton import launch_table
from ndfast.backends.triton.backward_kernel import backward_kernel
from ndfast.backends.triton.forward_kernel import forward_kernel
from ndfast.backends.triton.launch_table import LaunchConfig
from ndfast.backends.triton.quick_launch import QuickLaunch
from ndfast.backends.triton.workspace import (
    MAX_PROGRAMS_PER_SM,
    num_sms,
    refuse_in_capture,
    workspace,
)

Tensors = tuple[Tensor | None, ...]

_forward_kernel = QuickLaunch(forward_kernel)
_backward_kernel = QuickLaunch(backward_kernel)


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
    upstream: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and what backward needs, in one launch; see `ndfast.backends`."""
    N, D = student.shape
    dtype = accumulation_dtype(student)
    loss = student.new_empty((N,) if reduction == NONE else (), dtype=dtype)
    saved = student.new_empty((1 + num_coefficients * N,), dtype=dtype)
    grad_student = student.new_empty((N, D) if gradient else (0,))

    student, class_means = _rows(student), _rows(class_means)
    features, norms = _features_and_norms(teacher)
    strides, alignment = _row_strides(student, features, class_means)
    integers = (*strides, N, class_means.shape[0], ignore_index)
    factor = weight / max(N, 1) if reduction == MEAN else weight
    numbers = (lam_scalar, factor, eps, upstream, upstream)
    constants = (alignment, reduction, num_coefficients)
    with torch.cuda.device_of(student):
        partials, ticket = (None, None) if reduction == NONE else workspace(student.device)
        tensors = (
            student, features, norms, class_means,
            _vector(target), _vector(target_b), _vector(lam), _vector(sample_weight),
            loss, saved, saved[1:], grad_student if gradient else None, partials,
            ticket,
        )  # fmt: skip
        _launch(_forward_kernel, student, tensors, integers, numbers, constants)
    return loss, saved, grad_student


def backward(
    grad_loss: Tensor,
    saved: Tensor,
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
    grad_student = student.new_empty(student.shape if needs_student else (0,))
    grad_teacher = student.new_empty(0)
    if needs_teacher:
        assert teacher is not None
        grad_teacher = teacher.new_empty(teacher.shape)
    grad_centres = saved.new_empty(student.shape if needs_class_means else (0,))

    labels = _vector(target), _vector(target_b), _vector(lam)
    gradients = (
        grad_student if needs_student else None,
        grad_teacher if needs_teacher else None,
        grad_centres if needs_class_means else None,
    )
    _launch_backward(
        _rows(student),
        _rows(teacher) if teacher is not None and needs_teacher else None,
        _rows(class_means), labels, lam_scalar, (grad_loss, saved),
        None if grad_features is None else _rows(grad_features),
        gradients, written_for=None,
    )  # fmt: skip
    if needs_class_means:
        grad_centres = add_by_class(grad_centres, class_means, target, target_b, lam, lam_scalar)
    return grad_student, grad_teacher, grad_centres


def finish_gradient_(
    grad_student: Tensor,
    grad_loss: Tensor,
    saved: Tensor,
    student: Tensor,
    class_means: Tensor,
    target: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_scalar: float,
    written_for: float = 1.0,
) -> None:
    """In place; a kernel looks at the upstream gradient, so that the host need not wait for it."""
    if len(student) == 0:  # the upstream gradients of no row cannot be looked at
        return
    labels = _vector(target), _vector(target_b), _vector(lam)
    _launch_backward(
        _rows(student), None, _rows(class_means), labels, lam_scalar, (grad_loss, saved), None,
        (grad_student, None, None), written_for,
    )  # fmt: skip


def _launch_backward(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    labels: Tensors,
    lam_scalar: float,
    upstream: tuple[Tensor, Tensor],
    grad_features: Tensor | None,
    gradients: Tensors,
    written_for: float | None,
) -> None:
    """``gradients``: of student, teacher and the rows' centres, None for those not wanted.

    ``written_for`` is the upstream gradient that they hold what is right for, None for nothing.
    """
    reads_centres = gradients[0] is not None or gradients[2] is not None
    tensors = (
        student, teacher, class_means if reads_centres else None, *labels, *upstream,
        grad_features, *gradients,
    )  # fmt: skip
    (N, D), K = student.shape, class_means.shape[0]
    strides, alignment = _row_strides(student, teacher, class_means, grad_features)
    integers = (*strides, _upstream_stride(upstream[0]), N, K)
    is_finished = written_for is not None
    numbers = (lam_scalar, 1.0 if written_for is None else written_for)
    launch = (_backward_kernel, student, tensors, integers, numbers, (alignment, is_finished))
    with torch.cuda.device_of(student):
        if is_finished:  # usually done at a glance, which is nothing to tune by
            _launch_with(launch_table.default_config(D, student.itemsize), *launch)
        else:
            _launch(*launch)


def _launch(
    kernel: QuickLaunch,
    student: Tensor,
    tensors: Tensors,
    integers: tuple[int, ...],
    numbers: tuple[float, ...],
    constants: tuple[int, ...],
) -> None:
    """Launches a kernel that may be run many times over, as the launch table says."""
    (N, D), itemsize = student.shape, student.itemsize
    arguments = (kernel, student, tensors, integers, numbers, constants)
    if launch_table.AUTOTUNE:
        dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        # The same for calls that run the same code on batches of about one size.
        key = (kernel, student.device, N.bit_length(), D, *dtypes, *constants)

        def timed(config: LaunchConfig) -> None:
            refuse_in_capture(student.device, "a layout to time", "runs nothing")
            _launch_with(config, *arguments)

        config = launch_table.measured_config(key, D, itemsize, timed)
    else:
        config = launch_table.default_config(D, itemsize)
    _launch_with(config, *arguments)


def _launch_with(
    config: LaunchConfig,
    kernel: QuickLaunch,
    student: Tensor,
    tensors: Tensors,
    integers: tuple[int, ...],
    numbers: tuple[float, ...],
    constants: tuple[int, ...],
) -> None:
    N, D = student.shape
    programs_per_sm = min(config.programs_per_sm, MAX_PROGRAMS_PER_SM)
    programs = min(_ceil_div(N, config.rows), programs_per_sm * num_sms(student.device))
    constants = (D, *constants, config.rows, config.block_d)
    kernel((max(programs, 1), 1, 1), tensors, integers, numbers, constants, config.num_warps)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)  # triton.cdiv takes two microseconds


def _rows(matrix: Tensor) -> Tensor:
    """[N, D] with neighbouring elements in a row."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _vector(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _features_and_norms(teacher: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if teacher is None:
        return None, None
    return (None, teacher.contiguous()) if teacher.dim() == 1 else (_rows(teacher), None)


def _row_strides(*matrices: Tensor | None) -> tuple[list[int], int]:
    """The row strides counted in alignments, 0 for None; and the alignment.

    The alignment is a power of two that divides all row strides; beyond 16 elements it brings
    nothing more.
    """
    strides = [0 if matrix is None else matrix.stride(0) for matrix in matrices]
    alignment = math.gcd(16, *strides)
    return [stride // alignment for stride in strides], alignment


def _upstream_stride(grad_loss: Tensor) -> int:
    """0 where one upstream gradient holds for all rows, expanded ones included."""
    return grad_loss.stride(0) if grad_loss.dim() else 0
