"""Calls on a GPU: a drawn case moved there, the three ways to a gradient, CUDA graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cases import Case
from torch import Tensor

import ndfast

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
# Of nd_loss the dtype decides which way the gradient takes; attach_nd_loss is c.
WAYS = {"fused": torch.float32, "deferred": torch.float16, "attached": torch.float32}


def to_gpu(value: Any) -> Any:
    """A case, a Mix, a dict or a tensor, with every tensor on the current GPU."""
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, dict):
        return {name: to_gpu(part) for name, part in value.items()}
    if isinstance(value, (Case, ndfast.Mix)):
        parts = (getattr(value, part.name) for part in dataclasses.fields(value))
        return type(value)(*map(to_gpu, parts))
    return value


def shifted(tensor: Tensor, offset: int) -> Tensor:
    """The same numbers, ``offset`` elements behind where an allocation begins."""
    memory = tensor.new_empty(tensor.numel() + offset)
    return memory[offset:].view(tensor.shape).copy_(tensor)


def student_gradient(case: Case, backend: str) -> Tensor:
    """Where the student alone needs one, as in training: `Case.run` asks for all of them."""
    student = case.student.detach().requires_grad_()
    function = ndfast.nd_loss if case.grad_features is None else ndfast.attach_nd_loss
    arguments = (student, case.teacher, case.class_means, case.target)
    found = function(*arguments, **case.options, backend=backend)
    outputs = (found,) if case.grad_features is None else (found[1], found[0])
    upstream = (case.upstream.to(outputs[0].dtype), case.grad_features)
    return torch.autograd.grad(outputs, student, upstream[: len(outputs)])[0]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tensors of a training step: student [N, D], a leaf; teacher, class_means, target; upstream.

    ``upstream`` is the gradient of the loss, 0-dim; ``grad_features`` [N, D] the classifier's.
    """

    student: Tensor
    teacher: Tensor
    class_means: Tensor
    target: Tensor
    upstream: Tensor
    grad_features: Tensor


def draw_inputs(
    way: str, N: int = 1024, D: int = 512, K: int = 10, upstream: float = 1.0
) -> Inputs:
    dtype = WAYS[way]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    return Inputs(
        normal(N, D).requires_grad_(),
        normal(N, D),
        torch.randn(K, D, device="cuda"),
        torch.randint(K, (N,), device="cuda"),
        torch.tensor(upstream, device="cuda"),
        normal(N, D) / N,
    )


def step(x: Inputs, way: str, backend: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the student, the upstream gradient a tensor on the device."""
    arguments = (x.student, x.teacher, x.class_means, x.target)
    if way == "attached":
        features, loss = ndfast.attach_nd_loss(*arguments, backend=backend)
        outputs, upstream = (features, loss), (x.grad_features, x.upstream)
    else:
        outputs, upstream = (ndfast.nd_loss(*arguments, backend=backend),), (x.upstream,)
    gradient = torch.autograd.grad(outputs, x.student, upstream)[0]
    return outputs[-1].detach(), gradient


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of the call, and what it returns: filled anew by each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


@torch.no_grad()
def copy_inputs(fresh: Inputs, to: Inputs) -> None:
    for new, old in zip(vars(fresh).values(), vars(to).values(), strict=True):
        old.copy_(new)


@contextmanager
def nothing_may_wait() -> Iterator[None]:
    """An error where torch synchronises, or where the host waits for the GPU in any other way."""
    torch.cuda.synchronize()
    torch.cuda._sleep(400_000_000)  # the GPU's cycles: some tenths of a second
    busy_until = torch.cuda.Event()
    busy_until.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        assert not busy_until.query(), "the host waited for the GPU"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
