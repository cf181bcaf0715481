"""The grid, and the inputs of a case."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A row of the table, but for the backend.

    Attributes:
        device: "cpu" or "cuda".
        N: rows.
        D: features.
        dtype: of student and teacher; class means are float32.
        backward: False times the forward alone, under no_grad.
    """

    device: str
    N: int
    D: int
    dtype: torch.dtype
    backward: bool = True

    @property
    def K(self) -> int:
        """Classes: CIFAR's 100 for its narrow networks, ImageNet's 1,000 for the others."""
        return 100 if self.D <= 256 else 1000

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def way(self) -> str:
        """How the gradient comes about: "a" in the forward's pass; "b" after it; "forward" not."""
        if not self.backward:
            return "forward"
        return "b" if self.dtype == torch.float16 else "a"

    @property
    def num_bytes(self) -> int:
        """Bytes that have to move: student and teacher read, the student's gradient written.

        Class means stay in the cache, and what a way reads twice is its own loss.
        """
        return (3 if self.backward else 2) * self.N * self.D * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.device}-{self.N}x{self.D}-{self.dtype_name}-{self.way}"


def grid(device: str, full: bool) -> list[Case]:
    """The cases of a device; the quick ones are among those of the full grid."""
    if full:
        shapes = product((8, 256, 4096), (64, 512, 1000, 2048))
        return [
            Case(device, N, D, dtype, backward)
            for N, D in shapes
            for dtype, backward in (
                (torch.float32, True),
                (torch.float32, False),
                (torch.bfloat16, True),
                (torch.float16, True),
            )
        ]
    return [
        Case(device, 8, 64, torch.float32),
        Case(device, 256, 512, torch.float32),
        Case(device, 4096, 2048, torch.float32),
        Case(device, 4096, 2048, torch.float32, backward=False),
        Case(device, 4096, 2048, torch.bfloat16),
        Case(device, 4096, 2048, torch.float16),
    ]


@dataclass(frozen=True)
class Inputs:
    """What one call of a step reads.

    Attributes:
        features: [2, N, D], student and teacher in one block, which a roofline reads in one go.
        student: [N, D], features[0] as a leaf that requires a gradient.
        teacher: [N, D], features[1].
        class_means: [K, D] float32.
        target: [N] int64 in [0, K).
        upstream: 0-dim float32, the gradient of the loss: 1, or where GradScaler starts for
            float16, whose gradients would underflow without it.
        out: [N, D], where a roofline writes.
    """

    features: Tensor
    student: Tensor
    teacher: Tensor
    class_means: Tensor
    target: Tensor
    upstream: Tensor
    out: Tensor


def make_inputs(case: Case, seed: int) -> list[Inputs]:
    """Fresh inputs: one set on the CPU, on a GPU as many as fill its L2 cache four times.

    A feature is its class mean plus noise, so that every term of loss and gradient weighs in.
    """
    generator = torch.Generator(case.device).manual_seed(seed)
    on_device: dict[str, Any] = {"device": case.device, "generator": generator}
    class_means = torch.randn(case.K, case.D, **on_device)
    upstream = torch.tensor(2.0**16 if case.dtype == torch.float16 else 1.0, device=case.device)

    def one() -> Inputs:
        target = torch.randint(case.K, (case.N,), **on_device)
        noise = torch.randn(2, case.N, case.D, **on_device)
        features = (noise + class_means[target]).to(case.dtype)
        student = features[0].detach().requires_grad_()
        out = torch.empty_like(student, requires_grad=False)
        return Inputs(features, student, features[1], class_means, target, upstream, out)

    return [one() for _ in range(_num_sets(case))]


def _num_sets(case: Case) -> int:
    if case.device == "cpu":
        return 1
    l2_bytes = torch.cuda.get_device_properties(case.device).L2_cache_size
    # The limit leaves the smallest cases in the cache; launches bind them, not bytes.
    return min(-(-4 * l2_bytes // case.num_bytes), 512)
