"""What is timed: the ND loss of ndfast and its peers, each forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import ndfast
from bench.cases import Case, Inputs
from ndfast.backends.reference import accumulation_dtype, row_loss

# A step makes one call on one set of inputs and returns (loss, the student's gradient); without
# backward, (loss,); a roofline (what it wrote,).
Step = Callable[[Inputs], tuple[Tensor, ...]]

# The loop's time is linear in N: beyond this a call takes seconds and tells nothing new.
LOOP_ROWS = 512
# F.cross_entropy is the measure of host cost, which shows where there is next to nothing to do.
HOST_BOUND_ELEMENTS = 1024


def nd_loss_step(case: Case, backend: str) -> Step:
    """`ndfast.nd_loss` on a backend."""
    return _step(
        lambda x: ndfast.nd_loss(x.student, x.teacher, x.class_means, x.target, backend=backend),
        case.backward,
    )


def peers(case: Case, class_means: Tensor) -> dict[str, Step]:
    """Other people's ways to the same loss and gradient, by the name the table gives them."""
    torch.compiler.reset()  # past eight shapes a compiled function would quietly run in eager
    losses: dict[str, Callable[[Inputs], Tensor]] = {
        "compile": _on_inputs(torch.compile(mean_loss, fullgraph=True, dynamic=False)),
        "eager": _on_inputs(mean_loss),
    }
    if case.N <= LOOP_ROWS:
        as_lists = {str(label): mean for label, mean in enumerate(class_means.tolist())}
        losses["loop"] = lambda x: per_sample_loss(x.student, x.teacher, as_lists, x.target)
    return {name: _step(loss, case.backward) for name, loss in losses.items()}


def yardsticks(case: Case, x: Inputs) -> dict[str, Step]:
    """Other work to measure against: the same bytes moved, and the host's cost of a common loss."""
    steps: dict[str, Step] = {"roofline": _add if case.backward else _sum}
    if case.device == "cpu" and case.backward and case.N * case.D <= HOST_BOUND_ELEMENTS:
        columns = x.target % case.D  # the features serve as logits
        steps["cross_entropy"] = _step(lambda x: F.cross_entropy(x.student, columns), True)
    return steps


def mean_loss(student: Tensor, teacher: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
    """The definition, vectorised, in the dtype of the sums; shapes as `Inputs`."""
    dtype = accumulation_dtype(student)
    return row_loss(student.to(dtype), teacher.to(dtype), class_means[target].to(dtype)).mean()


def per_sample_loss(
    student: Tensor, teacher: Tensor, class_means: dict[str, list[float]], target: Tensor
) -> Tensor:
    """The loss as KD++'s DirectNormLoss takes it: a row at a time, its class mean from a dict.

    What makes it slow is kept: the label read back from the device, the list turned into a tensor
    and uploaded, Python's max, a dozen small kernels a row. Only float16 and bfloat16 are new.
    """
    dtype = accumulation_dtype(student)
    total = torch.zeros((), dtype=dtype, device=student.device)
    for s, t, label in zip(student.to(dtype), teacher.to(dtype), target, strict=True):
        centre = torch.tensor(class_means[str(label.item())], device=student.device)
        cosine_times_norm = s.dot(centre / centre.norm())
        total = total + (1 - cosine_times_norm / max(s.norm(), t.norm()))
    return total / len(target)


def _on_inputs(loss: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda x: loss(x.student, x.teacher, x.class_means, x.target)


def _step(loss: Callable[[Inputs], Tensor], backward: bool) -> Step:
    def forward_and_backward(x: Inputs) -> tuple[Tensor, ...]:
        value = loss(x)
        # Not value.backward(): in training the student is no leaf, and nothing is accumulated.
        return value, *torch.autograd.grad(value, x.student, x.upstream)

    @torch.no_grad()
    def forward(x: Inputs) -> tuple[Tensor, ...]:
        return (loss(x),)

    return forward_and_backward if backward else forward


def _add(x: Inputs) -> tuple[Tensor]:
    return (torch.add(x.student.detach(), x.teacher, out=x.out),)


def _sum(x: Inputs) -> tuple[Tensor]:
    return (x.features.sum(),)
