"""The upstream gradient that the next backward will bring, by what the last ones have brought.

The fused way writes the student's gradient in forward, for an upstream gradient that is not known
yet. From step to step it is mostly the same: 1, a weight of the loss, GradScaler's scale. Where
another one than expected comes, backward writes the gradient anew, which takes time and changes no
bit of a result. Where the same one does so twice running, it is expected from then on.

Only for eager calls, and where a look at the gradient waits for no GPU.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ndfast.backends.reference import NONE


class Upstream:
    """Of the losses of one dtype of students.

    Attributes:
        at_first: what is expected before anything has come; None: there is no telling.
        expected: what to write a student's gradient for in forward; None: that has to wait.
    """

    __slots__ = ("_surprise", "at_first", "expected")

    def __init__(self, at_first: float | None) -> None:
        self.at_first = at_first
        self.forget()

    def forget(self) -> None:
        """As before anything has come."""
        self.expected = self.at_first
        self._surprise: float | None = None  # the last one, if it was not expected

    def comes(self, upstream: float, expected: float | None) -> None:
        """Learns what a backward has brought, and forward had expected."""
        if upstream == expected:
            self._surprise = None
            return
        # Not 0 either: it equals -0, which gives other zeros.
        if upstream == self._surprise and isfinite(upstream) and upstream != 0:
            self.expected = upstream
        self._surprise = upstream


# Without GradScaler's scale, which is part of it, small gradients underflow in float16.
BY_DTYPE = {
    torch.float16: Upstream(at_first=None),
    torch.bfloat16: Upstream(at_first=1.0),
    torch.float32: Upstream(at_first=1.0),
    torch.float64: Upstream(at_first=1.0),
}


def expected(student: Tensor, reduction: int, backend: Any) -> float | None:
    """What to write the student's gradient for in forward; None: that has to wait."""
    known = BY_DTYPE[student.dtype]
    if known.expected == known.at_first or (
        backend.is_unscaled and student.is_cpu and reduction != NONE
    ):
        return known.expected
    return known.at_first


def may_look(backend: Any, grad_loss: Tensor) -> bool:
    """Whether it is one number, waits for no GPU, and is all that the rows' coefficients lack."""
    return backend.is_unscaled and grad_loss.is_cpu and grad_loss.dim() == 0
