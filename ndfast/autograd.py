"""Autograd, the same for every backend: the fast way of eager calls.

torch.compile, torch.func and whoever else watches the ops get the ops' own autograd (`ndfast.ops`),
which is slower to call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ndfast import dispatch, ops
from ndfast.arguments import Rows

# Where the inputs that need a gradient stand among a Function's inputs.
STUDENT, TEACHER, CLASS_MEANS = 0, 1, 2


def nd_loss_rows(rows: Rows, backend: str | None) -> Tensor:
    """The loss of checked rows, with its gradients."""
    student, teacher, class_means = rows[:3]
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        return _TransformableNDLoss.apply(*rows, 4, False, backend)[0]
    if _is_watched(student):
        return ops.nd_loss_forward(*rows, 4, False, backend)[0]
    needs_gradient = torch.is_grad_enabled() and (
        student.requires_grad
        or class_means.requires_grad
        or (teacher is not None and teacher.requires_grad)
    )
    if forward_ad._current_level >= 0:  # the Function raises, a plain call would drop tangents
        needs_gradient = True
    module = dispatch.choose(student.device, backend)
    if not needs_gradient:
        return dispatch.run_forward(module, (*rows, 0, False))[0]
    return _apply_eagerly(student, teacher, class_means, rows, module)


def _is_watched(student: Tensor) -> bool:
    """Whether someone must see the op: torch.compile, a tensor subclass or a dispatch mode."""
    return (
        torch.compiler.is_compiling()
        or type(student) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _num_coefficients(needs_gradient: tuple[bool, ...]) -> int:
    """How many coefficients a row backward needs: the student two, the others four."""
    return 4 if needs_gradient[TEACHER] or needs_gradient[CLASS_MEANS] else 2


class _DeadEnd(torch.autograd.Function):
    """Passes the gradient on and raises where someone differentiates it once more."""

    @staticmethod
    def forward(gradient: Tensor, *it_depends_on: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ops.DOUBLE_BACKWARD)


def _once_differentiable(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Makes double backward an error.

    PyTorch's decorator of this name lets a gradient through as a constant where only saved tensors
    require a gradient, which makes a gradient penalty silently wrong.
    """

    @wraps(backward)
    def wrapper(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():  # no create_graph: nobody can differentiate again
            return backward(ctx, *grad_outputs)
        it_depends_on = (grad_outputs[0], *ctx.saved_tensors)
        with torch.no_grad():
            gradients = backward(ctx, *grad_outputs)
        return tuple(g if g is None else _DeadEnd.apply(g, *it_depends_on) for g in gradients)

    return wrapper


class _NDLoss(torch.autograd.Function):
    """Eager: the gradient of the student is finished in forward where its dtype allows.

    float16 waits for backward: with the upstream gradient still missing, GradScaler's scale is
    missing too, and small gradients would underflow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        class_means: Tensor,
        rows: Rows,  # these three among them: autograd follows no tensor in a tuple
        backend: Any,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        gradient = needs[STUDENT] and student.dtype != torch.float16
        loss, scale, coefficients, grad_student = dispatch.run_forward(
            backend, (*rows, _num_coefficients(needs), gradient)
        )
        target, target_b, lam, ctx.lam_scalar = rows[3:7]
        ctx.save_for_backward(
            student, teacher if needs[TEACHER] else None, class_means, target, target_b, lam
        )
        ctx.from_forward = scale, coefficients
        ctx.grad_student = grad_student if gradient else None
        ctx.backend = backend
        return loss

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        needs_student, needs_teacher, needs_class_means = ctx.needs_input_grad[:3]
        scale, coefficients = ctx.from_forward
        # Handed out once, so that nobody else holds it and it may be written in place; a second
        # backward (retain_graph) makes its own from the coefficients.
        grad_student, ctx.grad_student = ctx.grad_student, None
        if torch._C._functorch.is_legacy_batchedtensor(
            grad_loss
        ):  # is_grads_batched: several gradients
            grad_student = None
        is_finished = grad_student is not None and _is_one_on_the_cpu(grad_loss, scale)
        grads: tuple[Tensor | None, ...] = (grad_student, None, None)
        if not is_finished or needs_teacher or needs_class_means:
            student, teacher, *centres = ctx.saved_tensors
            centres.append(ctx.lam_scalar)
            rows = (grad_loss, scale, coefficients, student)
            if grad_student is not None:
                if not is_finished:
                    ctx.backend.finish_gradient_(grad_student, *rows, *centres)
                needs_student = False
            if needs_student or needs_teacher or needs_class_means:
                needs = (needs_student, needs_teacher, needs_class_means)
                grads = _wanted(ctx.backend.backward(*rows, teacher, *centres, *needs), needs)
                if grad_student is not None:
                    grads = (grad_student, *grads[1:])
        return *grads, None, None


# Function.apply without its look for what torch.func left behind, which has been taken:
# 3 of 58 µs of a small batch's forward and backward on a CPU.
_apply_eagerly = super(torch.autograd.Function, _NDLoss).apply


def _is_one_on_the_cpu(grad_loss: Tensor, scale: Tensor) -> bool:
    """Whether the gradient from forward is right as it is; False also where a look would wait."""
    return grad_loss.is_cpu and grad_loss.dim() == 0 and grad_loss.item() * scale.item() == 1


def _wanted(grads: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


class _TransformableNDLoss(torch.autograd.Function):
    """The op's autograd in the form that torch.func takes, which that of torch.library is not."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return ops.nd_loss_forward(*inputs)

    setup_context = staticmethod(ops.save_for_backward)
    backward = staticmethod(_once_differentiable(ops.gradients))
