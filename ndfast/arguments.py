"""What nd_loss's arguments may be; an error names the argument, what it got, what was expected."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ndfast.backends import Rows
from ndfast.backends.reference import MEAN, NONE, SUM, accumulation_dtype
from ndfast.dispatch import check_backend_name
from ndfast.labels import Mix, check_label_range, check_shares
from ndfast.saved import inference_error

_FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
_LABELS = frozenset((torch.int64, torch.int32, torch.uint8))
_LARGEST = int(sys.float_info.max)
_SMALLEST_EPS = 2.0**-126  # float32's smallest normal number: the kernels multiply by 1 / eps
_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


def check_and_flatten(
    student: Tensor,
    teacher: Tensor | None,
    class_means: Tensor,
    target: Tensor | Mix | None,
    weight: float,
    sample_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    eps: float,
    validate: bool,
    backend: str | None,
) -> tuple[Rows, tuple[int, ...] | None]:
    """Checks the arguments of `ndfast.nd_loss` and brings them to rows.

    Returns:
        The rows, and the shape that the loss of ``reduction="none"`` must be brought back to, None
        where it is right.
    """
    check_float_tensor("student", student)
    shape = student.shape
    if len(shape) < 2 or shape[1] == 0:
        raise ValueError(
            f"student: got shape {_shape(student)}; expected [N, D] or [N, D, d1, ...] with D > 0"
        )
    check_options(weight, reduction, ignore_index, eps, backend)
    rows_shape = (shape[0],) if len(shape) == 2 else _rows_shape(student, target)
    device = student.device

    if teacher is not None:
        check_float_tensor("teacher", teacher, device)
        if teacher.shape != shape:
            _check_norms(teacher, student, rows_shape)
    check_float_tensor("class_means", class_means, device)
    if sample_weight is not None:
        check_float_tensor("sample_weight", sample_weight, device)
        _check_constant("sample_weight", sample_weight)
        _check_shape("sample_weight", sample_weight, rows_shape, "one weight a row")

    target_b, lam, lam_scalar = None, None, 1.0
    if target is None:
        if len(rows_shape) > 1 or class_means.shape != shape[:2]:  # [N, D] beside [N, D, 1, 1]
            _check_shape("class_means", class_means, shape, "one centre a row")
        class_means = flatten(class_means)
    else:
        means_shape = class_means.shape
        if len(means_shape) != 2 or means_shape[1] != shape[1] or means_shape[0] == 0:
            raise ValueError(
                f"class_means: got shape {_shape(class_means)}; for student {_shape(student)} "
                f"expected [K, {shape[1]}] with K > 0"
            )
        if isinstance(target, Mix):
            target, target_b, lam, lam_scalar = _check_mix(target, rows_shape, device)
        elif isinstance(target, Tensor) and target.dtype in _FLOATS:
            class_means = _centres_of_probabilities(student, class_means, target, rows_shape)
            target = None
        else:
            target = _check_labels("target", target, rows_shape, device)
        if validate:
            check_label_range(target, target_b, class_means.shape[0], ignore_index)
            if lam is not None:
                check_shares(lam)

    if len(shape) > 2:
        student = flatten(student)
        if teacher is not None:
            teacher = flatten(teacher) if teacher.shape != rows_shape else teacher.reshape(-1)
        if sample_weight is not None:
            sample_weight = sample_weight.reshape(-1)
    rows = Rows(
        student, teacher, class_means, target, target_b, lam, lam_scalar, sample_weight,
        float(weight), _REDUCTIONS[reduction], int(ignore_index), float(eps),
    )  # fmt: skip
    return rows, tuple(rows_shape) if reduction == "none" and len(rows_shape) > 1 else None


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def flatten(features: Tensor) -> Tensor:
    """[N, D, d1, ...] to [N·d1·..., D], a view where the strides allow."""
    if features.dim() == 2:
        return features
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def unflatten(rows: Tensor, shape: torch.Size) -> Tensor:
    """[N·d1·..., D] to the ``shape`` [N, D, d1, ...] that was flattened, a view."""
    if len(shape) == 2:
        return rows
    N, D, *rest = shape
    return rows.view(N, *rest, D).movedim(-1, 1)


def _rows_shape(student: Tensor, target: Any) -> Any:
    """The rows' shape [N, d1, ...] of [N, D, d1, ...].

    [N, D, 1, 1], a pooled feature, has rows [N] unless the target says otherwise.
    """
    shape = student.shape[:1] + student.shape[2:]
    if student.shape[2:].numel() == 1:
        labels = target.target_a if isinstance(target, Mix) else target
        is_2d = not isinstance(labels, Tensor) or labels.dim() == 1 + labels.is_floating_point()
        return student.shape[:1] if is_2d else shape
    return shape


def check_float_tensor(name: str, value: Any, device: torch.device | None = None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a torch.Tensor")
    if value.dtype not in _FLOATS:
        raise TypeError(
            f"{name}: got dtype {value.dtype}; expected float16, bfloat16, float32 or float64"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}; expected a dense tensor")
    if device is not None and value.device != device:
        raise _wrong_device(name, value, device)


def _wrong_device(name: str, value: Tensor, device: torch.device) -> ValueError:
    return ValueError(f"{name}: is on {value.device}, but student on {device}")


def _check_constant(name: str, value: Tensor) -> None:
    if value.requires_grad:
        raise ValueError(f"{name}: requires a gradient, but is a constant of the loss; detach() it")


def _check_shape(name: str, value: Tensor, shape: Any, meaning: str) -> None:
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {_shape(value)}; expected {list(shape)}, {meaning}")


def _check_norms(teacher: Tensor, student: Tensor, rows_shape: Any) -> None:
    if teacher.shape != rows_shape:
        raise ValueError(
            f"teacher: got shape {_shape(teacher)}; for student {_shape(student)} expected "
            f"features of that shape or norms of shape {list(rows_shape)}"
        )
    _check_constant("teacher", teacher)


def check_options(
    weight: float, reduction: str, ignore_index: int, eps: float, backend: str | None
) -> None:
    """Those of the options that a module of the loss is built with."""
    check_number("weight", weight)
    check_number("eps", eps)
    if eps != 0 and not _SMALLEST_EPS <= eps < math.inf:
        raise ValueError(f"eps: got {eps}; expected a finite number, 0 or 2**-126 and more")
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(
            f"reduction: {reduction!r} is not a valid value; expected 'none', 'mean' or 'sum'"
        )
    if not isinstance(ignore_index, (int, Integral)):  # an int is known at once, and NumPy's too
        raise TypeError(f"ignore_index: got {type(ignore_index).__name__}; expected an int")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}; expected a number that int64 holds")
    if backend is not None:
        check_backend_name(backend)


def check_number(name: str, value: Any) -> None:
    """NumPy's numbers too; raises TypeError for what is none, ValueError for one out of range."""
    if isinstance(value, (float, int)):
        if type(value) is int and abs(value) > _LARGEST:
            raise ValueError(f"{name}: got {value.bit_length()} bits; no float is so large")
    elif not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a number")


def _check_labels(name: str, labels: Any, rows_shape: Any, device: torch.device) -> Tensor:
    """Class indices, flattened to [N]."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{name}: got {type(labels).__name__}; expected class indices, ndfast.Mix, class "
            "probabilities or None"
        )
    if labels.dtype not in _LABELS:
        raise TypeError(
            f"{name}: got dtype {labels.dtype}; class indices are int64, int32 or uint8"
        )
    if labels.shape != rows_shape:
        raise ValueError(
            f"{name}: got shape {_shape(labels)}; expected {list(rows_shape)}, a class index a row"
        )
    if labels.device != device:
        raise _wrong_device(name, labels, device)
    return labels if len(rows_shape) == 1 else labels.reshape(-1)


def _check_mix(
    mix: Mix, rows_shape: Any, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    target_a = _check_labels("target.target_a", mix.target_a, rows_shape, device)
    target_b = _check_labels("target.target_b", mix.target_b, rows_shape, device)
    lam = mix.lam
    check_lam("target.lam", lam, rows_shape, device)
    if not isinstance(lam, Tensor):
        return target_a, target_b, None, float(lam)
    return target_a, target_b, lam.expand(rows_shape).reshape(-1), 1.0


def check_lam(name: str, lam: Any, rows_shape: Any, device: torch.device) -> None:
    """That of `Mix`; what a tensor holds is not looked at."""
    if isinstance(lam, Tensor):
        check_float_tensor(name, lam, device)
        _check_constant(name, lam)
        if lam.dim() != 0:
            _check_shape(name, lam, rows_shape, "one share a row, or a single one")
        return
    check_number(name, lam)
    if not 0 <= lam <= 1:
        raise ValueError(f"{name}: got {lam}; expected a share from 0 to 1")


def _centres_of_probabilities(
    student: Tensor, class_means: Tensor, probabilities: Tensor, rows_shape: Any
) -> Tensor:
    """[N, D] in the dtype of the sums, outside autocast: a matrix product that autograd follows."""
    N, *rest = rows_shape
    _check_shape(
        "target", probabilities, torch.Size((N, len(class_means), *rest)), "class probabilities"
    )
    check_float_tensor("target", probabilities, student.device)
    _check_constant("target", probabilities)
    dtype = accumulation_dtype(student)
    device = student.device.type
    # Not torch.amp.is_autocast_available: torch.compile before 2.12 cannot trace it.
    has_autocast = device != "meta"
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        shares = flatten(probabilities).to(dtype)
        if class_means.requires_grad and torch.is_grad_enabled() and shares.is_inference():
            raise inference_error("target")
        return shares @ class_means.to(dtype)
