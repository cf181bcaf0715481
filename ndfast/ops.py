"""Op schemas and fake kernels: the only file that speaks torch.library.

torch.compile and torch.func see one functional pair of ops, whichever backend runs: the backend is
chosen inside, on real tensors, so the graph does not depend on the choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndfast import dispatch
from ndfast.backends.reference import NONE, accumulation_dtype

DOUBLE_BACKWARD = "nd_loss: its gradient cannot be differentiated again (double backward)"

_INPUTS = (
    "Tensor student, Tensor? teacher, Tensor class_means, Tensor? target, Tensor? target_b, "
    "Tensor? lam, float lam_scalar"
)
_library = torch.library.Library("ndfast", "DEF")
_library.define(
    f"nd_loss_forward({_INPUTS}, Tensor? sample_weight, float weight, int reduction, "
    "int ignore_index, float eps, int num_coefficients, bool gradient, str? backend) -> "
    "(Tensor loss, Tensor scale, Tensor coefficients, Tensor grad_student)",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    f"nd_loss_backward(Tensor grad_loss, Tensor scale, Tensor coefficients, {_INPUTS}, "
    "Tensor? grad_features, bool needs_student, bool needs_teacher, bool needs_class_means, "
    "str? backend) -> "
    "(Tensor grad_student, Tensor grad_teacher, Tensor grad_class_means)",
    tags=torch.Tag.pt2_compliant_tag,
)

_library.impl("nd_loss_forward", dispatch.forward, "CompositeExplicitAutograd")
_library.impl("nd_loss_backward", dispatch.backward, "CompositeExplicitAutograd")


@torch.library.register_fake("ndfast::nd_loss_forward", lib=_library)
def _forward_fake(
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
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, D = student.shape
    dtype = accumulation_dtype(student)
    return (
        student.new_empty((N,) if reduction == NONE else (), dtype=dtype),
        student.new_empty((), dtype=dtype),
        student.new_empty((num_coefficients, N), dtype=dtype),
        student.new_empty((N, D) if gradient else (0,)),
    )


@torch.library.register_fake("ndfast::nd_loss_backward", lib=_library)
def _backward_fake(
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
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    def gradient(of: Tensor | None, needed: bool) -> Tensor:
        return student.new_empty(0) if of is None or not needed else of.new_empty(of.shape)

    return (
        gradient(student, needs_student),
        gradient(teacher, needs_teacher),
        gradient(class_means, needs_class_means),
    )


nd_loss_forward = torch.ops.ndfast.nd_loss_forward.default
nd_loss_backward = torch.ops.ndfast.nd_loss_backward.default


class OpPair(NamedTuple):
    """The pair of ops in the form of a backend."""

    backend: str | None

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return nd_loss_forward(*arguments, self.backend)

    def backward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return nd_loss_backward(*arguments, self.backend)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What `gradients` needs; the setup_context of nd_loss_forward."""
    *tensors, ctx.lam_scalar = inputs[:7]
    _, scale, coefficients, _ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(scale, coefficients, *tensors)
    ctx.num_inputs, ctx.backend = len(inputs), inputs[-1]


def gradients(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """The backward of nd_loss_forward."""
    needs = ctx.needs_input_grad[:3]
    saved = (*ctx.saved_tensors, ctx.lam_scalar)
    grads = nd_loss_backward(grad_loss, *saved, None, *needs, ctx.backend)
    return *wanted(grads, needs), *[None] * (ctx.num_inputs - len(grads))


def wanted(grads: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients as autograd takes them: None in place of an empty tensor."""
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def _no_second_derivative(ctx: Any, *_: Tensor) -> Any:
    raise RuntimeError(DOUBLE_BACKWARD)


torch.library.register_autograd(
    "ndfast::nd_loss_forward", gradients, setup_context=save_for_backward, lib=_library
)
torch.library.register_autograd("ndfast::nd_loss_backward", _no_second_derivative, lib=_library)
