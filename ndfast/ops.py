"""Op schemas and fake kernels: the only file that speaks torch.library.

torch.compile and torch.func see one functional pair of ops, whichever backend runs: the backend is
chosen inside, on real tensors, so the graph does not depend on the choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndfast import dispatch, saved, transforms
from ndfast.backends import Gradients, Rows
from ndfast.backends.reference import NONE, accumulation_dtype

_INPUTS = (
    "Tensor student, Tensor? teacher, Tensor class_means, Tensor? target, Tensor? target_b, "
    "Tensor? lam, float lam_scalar"
)
_library = torch.library.Library("ndfast", "DEF")
_library.define(
    f"nd_loss_forward({_INPUTS}, Tensor? sample_weight, float weight, int reduction, "
    "int ignore_index, float eps, int num_coefficients, bool gradient, str? backend) -> "
    "(Tensor loss, Tensor saved, Tensor grad_student)",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    f"nd_loss_backward(Tensor grad_loss, Tensor saved, {_INPUTS}, "
    "Tensor? grad_features, bool needs_student, bool needs_teacher, bool needs_class_means, "
    "str? backend) -> "
    "(Tensor grad_student, Tensor grad_teacher, Tensor grad_class_means)",
    tags=torch.Tag.pt2_compliant_tag,
)

_library.impl("nd_loss_forward", dispatch.forward, "CompositeExplicitAutograd")
_library.impl("nd_loss_backward", dispatch.backward, "CompositeExplicitAutograd")


@torch.library.register_fake("ndfast::nd_loss_forward", lib=_library)
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *of_rows, num_coefficients, gradient, _ = arguments
    rows = Rows(*of_rows)
    (N, D), dtype = rows.student.shape, accumulation_dtype(rows.student)
    empty = rows.student.new_empty
    return (
        empty((N,) if rows.reduction == NONE else (), dtype=dtype),
        empty((1 + num_coefficients * N,), dtype=dtype),
        empty((N, D) if gradient else (0,)),
    )


@torch.library.register_fake("ndfast::nd_loss_backward", lib=_library)
def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *of_backend, _ = arguments
    asked = Gradients(*of_backend)

    def gradient(of: Tensor | None, needed: bool) -> Tensor:
        return asked.student.new_empty(0) if of is None or not needed else of.new_empty(of.shape)

    return (
        gradient(asked.student, asked.needs_student),
        gradient(asked.teacher, asked.needs_teacher),
        gradient(asked.class_means, asked.needs_class_means),
    )


nd_loss_forward = torch.ops.ndfast.nd_loss_forward.default
nd_loss_backward = torch.ops.ndfast.nd_loss_backward.default


class OpPair(NamedTuple):
    """The pair of ops in the form of a backend."""

    backend: str | None

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return nd_loss_forward(*arguments, self.backend)

    def backward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return nd_loss_backward(*arguments, self.backend)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """That of nd_loss_forward."""
    ctx.mark_non_differentiable(*output[1:])
    saved.save(ctx, OpPair(inputs[-1]), inputs, output[1])
    ctx.num_inputs = len(inputs)


def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """That of nd_loss_forward."""
    grads = saved.gradients(ctx, grad_loss, None, ctx.needs_input_grad[:3])
    return *grads, *[None] * (ctx.num_inputs - len(grads))


def _no_second_derivative(ctx: Any, *_: Tensor) -> Any:
    raise RuntimeError(transforms.DOUBLE_BACKWARD)


torch.library.register_autograd(
    "ndfast::nd_loss_forward", backward, setup_context=setup_context, lib=_library
)
torch.library.register_autograd("ndfast::nd_loss_backward", _no_second_derivative, lib=_library)


def _one_by_one(op: Any) -> Any:
    """The op under vmap: for one slice after the other, as each has a denominator of its own."""

    def call(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        along = list(zip(arguments, in_dims, strict=True))
        slices = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in along))
            for i in range(info.batch_size)
        ]
        outputs = tuple(torch.stack(of_slices) for of_slices in zip(*slices, strict=True))
        return outputs, (0,) * len(outputs)

    return call


torch.library.register_vmap("ndfast::nd_loss_forward", _one_by_one(nd_loss_forward), lib=_library)
torch.library.register_vmap("ndfast::nd_loss_backward", _one_by_one(nd_loss_backward), lib=_library)
