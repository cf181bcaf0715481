"""What forward leaves for backward, the same for every autograd Function of the loss.

Nothing is kept that the gradients which are needed are not made of, and all tensors are kept where
autograd knows of them: it frees them after backward, and hooks on saved tensors see them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_NAMES = ("student", "teacher", "class_means", "target", "target.target_b", "target.lam")

# Where the inputs that may need a gradient stand among a Function's inputs.
STUDENT, TEACHER, CLASS_MEANS = 0, 1, 2


def save(ctx: Any, backend: Any, inputs: tuple[Any, ...], saved: Tensor) -> None:
    """Keeps what `gradients` and `finish_gradient_` need.

    Args:
        ctx: of a Function whose first inputs are student, teacher and class means.
        backend: as in `ndfast.backends`.
        inputs: of its forward, or more than these.
        saved: forward's.
    """
    student, teacher, class_means, target, target_b, lam, ctx.lam_scalar = inputs[:7]
    needs = ctx.needs_input_grad
    if not needs[TEACHER]:
        teacher = None
    elif not (needs[STUDENT] or needs[CLASS_MEANS]):
        student = class_means = target = target_b = lam = None
    ctx.save_for_backward(saved, student, teacher, class_means, target, target_b, lam)
    ctx.backend = backend


def gradients(
    ctx: Any, grad_loss: Tensor, grad_features: Tensor | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, as autograd takes them; ``grad_features`` goes into the first.

    ``needs`` are `ctx.needs_input_grad`'s first three, or fewer.
    """
    saved, student, teacher, class_means, *centres = ctx.saved_tensors
    if student is None:  # gamma·t is all there is to it; the backends ask for matrices that fit
        N, D = teacher.shape
        student = class_means = saved.new_zeros(1, D).expand(N, D)
    grads = ctx.backend.backward(
        grad_loss, saved, student, teacher, class_means, *centres, ctx.lam_scalar, grad_features,
        *needs,
    )  # fmt: skip
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def finish_gradient_(ctx: Any, grad_student: Tensor, grad_loss: Tensor, written_for: float) -> None:
    """In place: the gradient that forward wrote for another upstream gradient, for this one."""
    saved, student, _, *centres = ctx.saved_tensors
    ctx.backend.finish_gradient_(
        grad_student, grad_loss, saved, student, *centres, ctx.lam_scalar, written_for
    )


def scale(ctx: Any) -> Tensor:
    """0-dim: what all of the rows' coefficients lack besides the upstream gradient."""
    return ctx.saved_tensors[0][0]


def name_inference_tensor(error: RuntimeError, inputs: tuple[Any, ...]) -> RuntimeError:
    """The error with the argument's name, where autograd could not keep one of the ``inputs``."""
    if "nference tensors cannot be saved" not in str(error):
        return error
    for name, value in zip(_NAMES, inputs, strict=False):
        if (
            value is not None
            and value.is_inference()
            and (name != "teacher" or value.requires_grad)
        ):
            return inference_error(name)
    return error


def inference_error(name: str) -> RuntimeError:
    """That the argument of this name cannot be kept."""
    return RuntimeError(
        f"{name}: got a tensor made in torch.inference_mode(), which backward reads and autograd "
        "cannot keep; expected one made outside of it, or its clone()"
    )
