"""What is timed: the ND loss of ndfast, its peers, and rooflines; each a call on given inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import ndfast
from bench.cases import KINDS, Case, Inputs
from ndfast.backends.reference import accumulation_dtype, row_loss

# A step makes one call on one set of inputs and returns (loss, the student's gradient); without
# backward, (loss,); a roofline what it wrote.
Step = Callable[[Inputs], tuple[Tensor, ...]]
Loss = Callable[[Inputs], Tensor]

# The loop's time is linear in N: beyond this a call takes seconds and tells nothing new.
LOOP_ROWS = 512
# F.cross_entropy is the measure of host cost, which shows where there is next to nothing to do.
HOST_BOUND_ELEMENTS = 1024
# torch.compile's modes by the names that the table gives them; "graphs" are its own CUDA graphs.
COMPILE_MODES = {
    "compile": "default",
    "compile_graphs": "reduce-overhead",
    "autotune": "max-autotune-no-cudagraphs",
    "autotune_graphs": "max-autotune",
}


@dataclass(frozen=True)
class Peer:
    """A step, and how a GPU's time is taken of it.

    Attributes:
        step: what is called.
        in_graph: in a CUDA graph of many calls. False where it has CUDA graphs of its own, or
            waits for the GPU.
        waits: for the GPU within a call, so that one call is long enough to be timed.
    """

    step: Step
    in_graph: bool = True
    waits: bool = False


def nd_loss_step(case: Case, backend: str) -> Step:
    """`ndfast.nd_loss`, or for the kind "attached" `ndfast.attach_nd_loss`, on a backend."""
    if case.kind != "attached":
        return _step(case, _nd_loss(backend))

    def attached(x: Inputs) -> tuple[Tensor, ...]:
        features, loss = ndfast.attach_nd_loss(
            x.student, x.teacher, x.class_means, x.target, backend=backend
        )
        return loss, *_gradients(features, loss, x)

    return attached


def forward_step(case: Case, backend: str) -> Step:
    """The part of `nd_loss_step` before backward: what is left over is the backward's."""
    loss = _nd_loss(backend)
    if case.kind != "attached":
        return lambda x: (loss(x),)
    return lambda x: ndfast.attach_nd_loss(
        x.student, x.teacher, x.class_means, x.target, backend=backend
    )[1:]


def accumulating_step(case: Case, backend: str) -> Step:
    """`ndfast.nd_loss` where autograd adds its gradient to the classifier's."""
    return _step(case, _nd_loss(backend))


def peers(case: Case, class_means: Tensor) -> dict[str, Peer]:
    """Other people's ways to the same loss and gradient, by the name the table gives them."""
    modes = COMPILE_MODES if case.device == "cuda" else {"compile": "default"}
    found = {}
    for name, mode in modes.items():
        compiled = torch.compile(mean_loss, fullgraph=True, dynamic=False, mode=mode)
        found[name] = Peer(_step(case, _on_inputs(compiled)), not name.endswith("graphs"))
    found["eager"] = Peer(_step(case, _on_inputs(mean_loss)))
    if case.N <= LOOP_ROWS:
        as_lists = {str(label): mean for label, mean in enumerate(class_means.tolist())}
        loop = _step(case, lambda x: per_sample_loss(x.student, x.teacher, as_lists, x.target))
        found["loop"] = Peer(loop, in_graph=False, waits=True)
    return found


def yardsticks(case: Case, x: Inputs) -> dict[str, Step]:
    """Other work to measure against: the same bytes moved, and the host's cost of a common loss."""
    own = KINDS[case.kind].roofline
    if case.device == "cuda":
        names = dict.fromkeys(("add", "copy", "read", own))
        return {name: ROOFLINES[name].step for name in names}
    steps: dict[str, Step] = {own: ROOFLINES[own].step}
    if case.kind == "loss" and case.N * case.D <= HOST_BOUND_ELEMENTS:
        columns = x.target % case.D  # the features serve as logits
        steps["cross_entropy"] = _step(case, lambda x: F.cross_entropy(x.student, columns))
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


def _nd_loss(backend: str) -> Loss:
    return lambda x: ndfast.nd_loss(x.student, x.teacher, x.class_means, x.target, backend=backend)


def _on_inputs(loss: Callable[..., Tensor]) -> Loss:
    return lambda x: loss(x.student, x.teacher, x.class_means, x.target)


def _step(case: Case, loss: Loss) -> Step:
    """A loss with the backward that the case's kind has; autograd accumulates where it must."""

    def forward_and_backward(x: Inputs) -> tuple[Tensor, ...]:
        value = loss(x)
        # Not value.backward(): in training the student is no leaf, and nothing is accumulated.
        return value, *torch.autograd.grad(value, x.student, x.upstream)

    def beside_a_classifier(x: Inputs) -> tuple[Tensor, ...]:
        value = loss(x)
        return value, *_gradients(x.student.view_as(x.student), value, x)

    @torch.no_grad()
    def forward(x: Inputs) -> tuple[Tensor, ...]:
        return (loss(x),)

    return {"attached": beside_a_classifier, "forward": forward}.get(
        case.kind, forward_and_backward
    )


def _gradients(features: Tensor, loss: Tensor, x: Inputs) -> tuple[Tensor, ...]:
    """The student's, of the classifier that goes on from ``features`` and of the loss."""
    return torch.autograd.grad((features, loss), x.student, (x.grad_features, x.upstream))


@dataclass(frozen=True)
class Roofline:
    """Plain work that memory bounds.

    Attributes:
        step: what is called.
        tensors_moved: how many tensors of [N, D] it reads and writes.
    """

    step: Step
    tensors_moved: int

    def num_bytes(self, case: Case) -> int:
        return self.tensors_moved * case.N * case.D * case.dtype.itemsize


def _add(x: Inputs) -> tuple[Tensor, ...]:
    return (torch.add(x.student.detach(), x.features[1], out=x.out),)


def _copy(x: Inputs) -> tuple[Tensor, ...]:
    return (x.out.copy_(x.student.detach()),)


def _read(x: Inputs) -> tuple[Tensor, ...]:
    return (x.features.sum(),)


def _read_and_add(x: Inputs) -> tuple[Tensor, ...]:
    assert x.grad_features is not None
    return *_read(x), torch.add(x.student.detach(), x.grad_features, out=x.out)


ROOFLINES = {
    "add": Roofline(_add, 3),
    "copy": Roofline(_copy, 2),
    "read": Roofline(_read, 2),
    "read_and_add": Roofline(_read_and_add, 5),
}
