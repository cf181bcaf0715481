"""Autograd, the same for every backend: the fast way of eager calls.

torch.compile, torch.func and whoever else watches the ops get the ops' own autograd (`ndfast.ops`),
which is slower to call; the attached loss's Function is one for all, and calls the ops for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ndfast import dispatch, ops, private, saved, transforms, upstream
from ndfast.arguments import Rows, flatten, unflatten
from ndfast.backends.reference import coefficients_of
from ndfast.saved import CLASS_MEANS, STUDENT, TEACHER

# Bound once: looked up at every call they would take as long as what they tell.
_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_is_transforming = private.is_transforming
_is_tracing = private.is_tracing
_is_batched = private.is_batched
_num_dispatch_modes = private.num_dispatch_modes
_hooks_on_saved_tensors = private.hooks_on_saved_tensors
_may_have_tangents = private.may_have_tangents
_SEEN_THROUGH = (Tensor, torch.nn.Parameter)

# What autograd does not look at: the rows, its inputs among them; the backend; whether measured.
Call = tuple[Rows, Any, bool]


def nd_loss_rows(rows: Rows, backend: str | None, measured: bool) -> tuple[Tensor, Tensor | None]:
    """The loss of checked rows, with its gradients; and ``measured`` their `_measures`."""
    student, teacher, class_means = rows[:3]
    transforming = _is_transforming()
    if transforming:
        transforms.refuse_transforms()
    if _may_have_tangents():
        transforms.refuse_tangents(rows)
    if transforming or _is_watched(student):
        transformed = transforming and not _is_compiling()
        op = _TransformableNDLoss.apply if transformed else ops.nd_loss_forward
        outputs = op(*rows, 8 if measured else 4, False, dispatch.named(backend))
        return outputs[0], _measures(outputs[1], rows, measured)
    needs_gradient = _is_grad_enabled() and (
        student.requires_grad
        or class_means.requires_grad
        or (teacher is not None and teacher.requires_grad)
    )
    module = dispatch.choose(student.device, backend)
    if not needs_gradient:
        outputs = dispatch.run_forward(module, (*rows, 8 if measured else 0, False))
        return outputs[0], _measures(outputs[1], rows, measured)
    outputs = _apply_eagerly(student, teacher, class_means, (rows, module, measured))
    return outputs if measured else (outputs, None)


def attach_nd_loss_rows(
    student: Tensor, rows: Rows, backend: str | None, measured: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The features to go on with, and as `nd_loss_rows`; ``rows.student`` is them, flattened."""
    if not (_is_grad_enabled() and student.requires_grad) or _is_transforming():
        return student, *nd_loss_rows(rows, backend, measured)
    if _may_have_tangents():
        transforms.refuse_tangents(rows)
    if _is_watched(student):
        if not _is_compiling() and _is_tracing():  # torch.jit.trace looks into no Function
            return student, *nd_loss_rows(rows, backend, measured)
        call = rows, ops.OpPair(dispatch.named(backend)), measured
        return _AttachedNDLoss.apply(student, *rows[1:3], call)
    module = dispatch.choose(student.device, backend)
    return _attach_eagerly(student, *rows[1:3], (rows, module, measured))


def _measures(saved: Tensor, rows: Rows, measured: bool) -> Tensor | None:
    """For `ndfast.stats`, [4, N]."""
    return coefficients_of(saved, 8, len(rows.student))[4:] if measured else None


def _is_watched(student: Tensor) -> bool:
    """Whether someone must see the op: who traces, a tensor subclass or a dispatch mode."""
    return (
        _is_compiling()
        or type(student) not in _SEEN_THROUGH
        or _num_dispatch_modes() > 0
        or _is_tracing()
    )


class _DeadEnd(torch.autograd.Function):
    """Passes the gradient on and raises where someone differentiates it once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *it_depends_on: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(transforms.DOUBLE_BACKWARD)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(transforms.FORWARD_MODE)


def _end(gradient: Tensor, it_depends_on: tuple[Tensor | None, ...]) -> Tensor:
    """The gradient, which is not to be differentiated."""
    # is_grads_batched loses what a Function makes of it. torch.compile cannot ask under torch.func.
    if not _is_compiling() and _is_batched(gradient):
        return gradient + _DeadEnd.apply(torch.zeros((), device=gradient.device), *it_depends_on)
    return _DeadEnd.apply(gradient, *it_depends_on)


def _once_differentiable(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Makes double backward an error.

    PyTorch's decorator of this name lets a gradient through as a constant where only saved tensors
    require a gradient, which makes a gradient penalty silently wrong.
    """

    @wraps(backward)
    def wrapper(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if _may_have_tangents():
            transforms.refuse_tangents(grad_outputs)
        if not _is_grad_enabled():  # no create_graph: nobody can differentiate again
            return backward(ctx, *grad_outputs)
        it_depends_on = (*grad_outputs, *ctx.saved_tensors)
        with torch.no_grad():
            gradients = backward(ctx, *grad_outputs)
        return tuple(g if g is None else _end(g, it_depends_on) for g in gradients)

    return wrapper


def _run_forward(
    ctx: Any, call: Call, written_for: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss and, where asked for, the student's gradient and the measures.

    Keeps what backward takes. ``written_for`` is the upstream gradient that the student's gradient
    is for, None where backward writes it.
    """
    rows, backend, measured = call
    needs = ctx.needs_input_grad
    # Backward needs two coefficients a row for the student, four for the others.
    num_coefficients = 8 if measured else 4 if needs[TEACHER] or needs[CLASS_MEANS] else 2
    arguments = (*rows, num_coefficients, written_for is not None)
    if type(backend) is ops.OpPair:
        loss, kept, grad_student = backend.forward(*arguments)
    elif written_for is None or written_for == 1:
        loss, kept, grad_student = dispatch.run_forward(backend, arguments)
    else:
        loss, kept, grad_student = dispatch.run_forward(backend, arguments, upstream=written_for)
    saved.save(ctx, backend, rows, kept)
    measures = _measures(kept, rows, measured)
    if measures is None:
        return loss, grad_student, None
    ctx.mark_non_differentiable(measures)
    ctx.set_materialize_grads(False)
    return loss, grad_student, measures


class _NDLoss(torch.autograd.Function):
    """Eager: the gradient of the student is finished in forward where its dtype allows.

    float16 waits for backward until it is known what will come (`ndfast.upstream`): without the
    upstream gradient GradScaler's scale is missing, and small gradients would underflow. So do
    hooks on saved tensors, always: a checkpoint would have the gradient computed twice, and the
    first kept, for no hook sees it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        class_means: Tensor,
        call: Call,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not ctx.needs_input_grad[STUDENT] or _hooks_on_saved_tensors(False) is not None:
            loss, _, measures = _run_forward(ctx, call, None)
            ctx.finished = None
        else:
            known = upstream.of(student)
            written_for = known.for_forward(student, call[0].reduction)
            loss, grad_student, measures = _run_forward(ctx, call, written_for)
            ctx.finished = grad_student, written_for, known
        return loss if measures is None else (loss, measures)  # a second output costs a microsecond

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        # Handed out once, so that nobody else holds it and it may be written in place; a second
        # backward (retain_graph) makes its own from the coefficients.
        finished, ctx.finished = ctx.finished, None
        grad_student = None if finished is None else _finished(ctx, finished, grad_loss)
        del finished  # what is of no use is freed before another is written
        if grad_student is None:
            return *saved.gradients(ctx, grad_loss, None, needs), None
        if not (needs[TEACHER] or needs[CLASS_MEANS]):
            return grad_student, None, None, None
        others = saved.gradients(ctx, grad_loss, None, (False, *needs[1:]))[1:]
        return grad_student, *others, None


_apply_eagerly = private.apply_of(_NDLoss)  # the look for torch.func has been taken


def _finished(
    ctx: Any, finished: tuple[Tensor, float | None, upstream.Upstream], grad_loss: Tensor
) -> Tensor | None:
    """The student's gradient that forward has written, made right; None where it is of no use."""
    grad_student, written_for, known = finished
    if _is_batched(grad_loss):  # several upstream gradients, and this is for one
        return None
    try:
        came = known.look(ctx, grad_loss, written_for)
        if written_for is None:
            return None
        if came != written_for:  # or has not been seen: then a kernel looks
            saved.finish_gradient_(ctx, grad_student, grad_loss, written_for)
    except RuntimeError:  # those of torch.vmap are no one number; to ask first takes longer
        if _is_transforming() or _is_watched(grad_loss):
            return None
        raise
    return grad_student


class _AttachedNDLoss(torch.autograd.Function):
    """The features as they are, and the loss; backward adds both gradients in one kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        class_means: Tensor,
        call: Call,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.shape = student.shape
        loss, _, measures = _run_forward(ctx, call, None)
        return student, loss, measures

    @staticmethod
    def backward(
        ctx: Any, grad_features: Tensor | None, grad_loss: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        if grad_loss is None:  # not used; the classifier's gradient may be differentiated again
            return grad_features, None, None, None
        return _sum_of_gradients(ctx, grad_features, grad_loss)


@_once_differentiable
def _sum_of_gradients(
    ctx: Any, grad_features: Tensor | None, grad_loss: Tensor
) -> tuple[Tensor | None, ...]:
    if grad_features is not None:
        grad_features = flatten(grad_features)
    grad_student, *others = saved.gradients(ctx, grad_loss, grad_features, ctx.needs_input_grad[:3])
    assert grad_student is not None  # a student that needs no gradient is not attached
    return unflatten(grad_student, ctx.shape), *others, None


_attach_eagerly = private.apply_of(_AttachedNDLoss)


class _TransformableNDLoss(torch.autograd.Function):
    """The op's autograd in the form that torch.func takes, which that of torch.library is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return ops.nd_loss_forward(*inputs)

    setup_context = staticmethod(ops.setup_context)
    backward = staticmethod(_once_differentiable(ops.backward))
