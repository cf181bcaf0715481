"""The grid, and the inputs of a case."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ndfast.dispatch import choose

MOST_INPUT_SETS = 512
# How much is timed: a GPU's few cases that tell the most, the quick grid, the whole one.
SIZES = ("telling", "quick", "full")
NUM_TELLING = 12
LEFT_OUT = "left out of this grid; a larger one has it"  # why a case has no max-autotune
CLOSE = 1 / 256  # of norms relative to each other: bfloat16's rounding


@dataclass(frozen=True)
class Kind:
    """What a call does.

    Attributes:
        tensors_moved: how many tensors of [N, D] have to move. Class means stay in the cache, and
            what a backend reads twice of its own accord is its own loss.
        roofline: the name, in `bench.steps.ROOFLINES`, of plain work that moves as much.
    """

    tensors_moved: int
    roofline: str


KINDS = {
    # nd_loss and its backward: student and teacher read, the student's gradient written.
    "loss": Kind(3, "add"),
    # nd_loss under no_grad: student and teacher read.
    "forward": Kind(2, "read"),
    # nd_loss and its backward, the teacher given as its norms: student read, gradient written.
    "norms": Kind(2, "copy"),
    # attach_nd_loss and the backward of both its outputs: student and teacher read; then, as the
    # classifier stands between, student and the classifier's gradient read, their sum written.
    "attached": Kind(5, "read_and_add"),
}


@dataclass(frozen=True)
class Case:
    """A row of the table, but for the backend.

    Attributes:
        device: "cpu" or "cuda".
        N: rows.
        D: features.
        dtype: of student and teacher; a teacher's norms are float32.
        kind: what a call does, a key of `KINDS`.
        K: classes.
        means_dtype: of the class means.
    """

    device: str
    N: int
    D: int
    dtype: torch.dtype
    kind: str = "loss"
    K: int = 1000
    means_dtype: torch.dtype = torch.float32

    @property
    def way(self) -> str:
        """How the gradient comes about.

        "fused" in the forward's pass; "deferred" after it; "attached" after it, added to the
        classifier's; "forward" not at all.
        """
        if self.kind == "forward":
            return "forward"
        if self.kind == "attached":
            return "attached"
        # float16 is, too, once its scale has come twice (`ndfast.upstream`), but not in the CUDA
        # graphs by which a GPU's calls are timed.
        is_deferred = self.dtype == torch.float16 and self.device != "cpu"
        return "deferred" if is_deferred else "fused"

    @property
    def num_bytes(self) -> int:
        """Bytes that have to move."""
        return KINDS[self.kind].tensors_moved * self.N * self.D * self.dtype.itemsize

    def __str__(self) -> str:
        means = (
            "" if self.means_dtype == torch.float32 else f"-{dtype_name(self.means_dtype)} means"
        )
        norms = "-norms" if self.kind == "norms" else ""
        name = f"{self.device}-{self.N}x{self.D}-{dtype_name(self.dtype)}-{self.way}{norms}"
        return f"{name}-K{self.K}{means}"


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32's is "float32"."""
    return str(dtype).removeprefix("torch.")


def has_autotune(case: Case, size: str) -> bool:
    """Whether torch.compile's max-autotune takes part: in the quick grid only in a case a way.

    Its search for a kernel takes longer than all else of a case.
    """
    if size == "telling":
        return False
    few = (
        (256, 512, "fused"),
        (16_384, 2048, "fused"),
        (16_384, 2048, "deferred"),
        (16_384, 2048, "attached"),
    )
    is_plain = case.kind != "norms" and case.dtype != torch.bfloat16
    return size == "full" or (is_plain and (case.N, case.D, case.way) in few)


def why_not_timed(backend: str, case: Case) -> str | None:
    """Why a backend has no row for a case, None where it has."""
    if backend == "triton" and case.device == "cpu":
        return "Triton's interpreter is for debugging, not for speed"
    is_plain = case.device == "cpu" and case.kind == "loss" and case.dtype == torch.float32
    if backend == "reference" and not is_plain:  # and in the plain cases for its host's cost
        return "the peers eager and compile are the reference's formula, vectorised"
    try:
        choose(torch.device(case.device), backend)
    except RuntimeError as reason:
        return str(reason)
    return None


def grid(device: str, size: str) -> list[Case]:
    """The cases of a device; a smaller grid's are among those of a larger one, one of `SIZES`.

    A GPU's quick ones begin with the telling ones, and in both what tells the most comes first: a
    benchmark that is cut short has it. On the CPU all quick ones are telling.
    """
    if device == "cpu":
        return _cpu_grid(device, size == "full")
    cases = _gpu_grid(device, size == "full")
    return cases[:NUM_TELLING] if size == "telling" else cases


def _cpu_grid(device: str, full: bool) -> list[Case]:
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    if full:
        shapes = product((8, 256, 4096), (64, 512, 1000, 2048))
        kinds = [(f32, kind) for kind in KINDS] + [(bf16, "loss"), (f16, "loss")]
        return [
            Case(device, N, D, dtype, kind, K=100 if D <= 256 else 1000)  # CIFAR's, ImageNet's
            for N, D in shapes
            for dtype, kind in kinds
        ]
    return [
        Case(device, 8, 64, f32, K=100),
        Case(device, 256, 512, f32),
        Case(device, 4096, 2048, f32),
        Case(device, 4096, 2048, f32, "forward"),
        Case(device, 4096, 2048, f32, "attached"),
        Case(device, 4096, 2048, bf16),
        Case(device, 4096, 2048, f16),
    ]


def _gpu_grid(device: str, full: bool) -> list[Case]:
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    if full:
        axes = product(
            (8, 64, 256, 512, 4096, 16_384, 65_536),
            (64, 512, 768, 1000, 2048, 4096),
            (f16, bf16, f32),
            ("loss", "attached", "norms"),
            (100, 1000),
            (f32, bf16),
        )
        return [Case(device, *values) for values in axes]
    return [  # few, for each compiles its peers anew; but every value of an axis
        Case(device, 16_384, 2048, bf16),
        Case(device, 16_384, 2048, f32),
        Case(device, 256, 512, f32),
        Case(device, 65_536, 768, bf16, means_dtype=bf16),
        Case(device, 16_384, 2048, bf16, "attached"),
        Case(device, 8, 64, f32, K=100),  # the host's cost, and no more
        Case(device, 16_384, 2048, f16),
        Case(device, 256, 512, f32, "attached"),
        Case(device, 16_384, 2048, f32, "attached"),
        Case(device, 4096, 2048, f32),
        Case(device, 16_384, 4096, f32, "norms"),
        Case(device, 256, 512, bf16),
        Case(device, 64, 64, f32, K=100),
        Case(device, 512, 1000, f32, K=100),
    ]


@dataclass(frozen=True)
class Inputs:
    """What one call of a step reads.

    Attributes:
        features: [2, N, D], student and teacher in one block, which a roofline reads in one go.
        student: [N, D], features[0] as a leaf that requires a gradient.
        teacher: [N, D], features[1]; its norms [N] float32 where the case's kind is "norms".
        class_means: [K, D].
        target: [N] int64 in [0, K).
        upstream: 0-dim float32, the gradient of the loss: 1, or where GradScaler starts for
            float16, whose gradients would underflow without it.
        grad_features: [N, D], the classifier's gradient, about as large as the loss's; None but
            for the kind "attached".
        out: [N, D], where a roofline writes.
    """

    features: Tensor
    student: Tensor
    teacher: Tensor
    class_means: Tensor
    target: Tensor
    upstream: Tensor
    grad_features: Tensor | None
    out: Tensor


def make_inputs(case: Case, seed: int) -> list[Inputs]:
    """Fresh inputs: one set on the CPU, on a GPU as many as fill its L2 cache four times.

    A feature is its class mean plus noise, so that every term of loss and gradient weighs in. No
    row's norms are so close that rounding decides which is the larger: half of the gradient hangs
    on that, and every peer rounds in its own way.
    """
    generator = torch.Generator(case.device).manual_seed(seed)
    on_device: dict[str, Any] = {"device": case.device, "generator": generator}
    class_means = torch.randn(case.K, case.D, **on_device).to(case.means_dtype)
    upstream = torch.tensor(2.0**16 if case.dtype == torch.float16 else 1.0, device=case.device)

    def one() -> Inputs:
        target = torch.randint(case.K, (case.N,), **on_device)
        features = torch.empty(2, case.N, case.D, dtype=case.dtype, device=case.device)
        for half in features:  # one by one: the largest case is 1 GiB a half
            half.copy_(torch.randn(case.N, case.D, **on_device).add_(class_means[target]))
        norms = torch.linalg.vector_norm(features, dim=2, dtype=torch.float32)
        features[1][(norms[0] / norms[1] - 1).abs() < CLOSE] *= 1 + 4 * CLOSE
        student, teacher = features[0].detach().requires_grad_(), features[1]
        if case.kind == "norms":
            teacher = torch.linalg.vector_norm(teacher, dim=1, dtype=torch.float32)
        grad_features = None
        if case.kind == "attached":
            noise = torch.randn(case.N, case.D, **on_device)
            grad_features = (noise * (upstream / (case.N * case.D))).to(case.dtype)
        out = torch.empty_like(student, requires_grad=False)
        return Inputs(features, student, teacher, class_means, target, upstream, grad_features, out)

    return [one() for _ in range(_num_sets(case))]


def _num_sets(case: Case) -> int:
    if case.device == "cpu":
        return 1
    l2_bytes = torch.cuda.get_device_properties(case.device).L2_cache_size
    # The limit leaves the smallest cases in the cache; launches bind them, not bytes.
    return min(-(-4 * l2_bytes // case.num_bytes), MOST_INPUT_SETS)
