"""The upstream gradient that the next backward will bring, by what the last ones have brought.

The fused way writes the student's gradient in forward, for an upstream gradient that is not known
yet. From step to step it is mostly the same: 1, a weight of the loss, GradScaler's scale. Where
another one than expected comes, backward writes the gradient anew, which takes time and changes no
bit of a result. Where the same one does so twice running, it is expected from then on; where two do
that differ, none is, and the gradient waits for backward.

On the CPU each is looked at. A GPU's would have to be waited for: now and then one is copied, and
seen by the forward that finds it there.

Only for eager calls. A CUDA graph keeps to what is expected where it is captured.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ndfast import saved
from ndfast.backends.reference import NONE

_LONGEST_WAIT = 31  # backwards between two copies
_NOT_YET = -2  # as bits, a NaN that no arithmetic gives


class Upstream:
    """Of the losses of one dtype of students, on the CPU.

    Attributes:
        at_first: what is expected before anything has come; None: there is no telling.
        expected: what to write a student's gradient for in forward; None: that has to wait.
    """

    __slots__ = ("_surprise", "at_first", "expected", "is_behind")

    def __init__(self, at_first: float | None) -> None:
        self.at_first = at_first
        self.forget()

    def forget(self) -> None:
        """As before anything has come."""
        self.expected = self.at_first
        self.is_behind = False  # something has come and is not known yet
        self._surprise: float | None = None  # the last one, if it was not expected

    def comes(self, upstream: float, expected: float | None) -> None:
        """Learns what a backward has brought, and its forward had expected."""
        if upstream == expected:
            self._surprise = None
            return
        if self._surprise is not None:
            # Not 0 either: it equals -0, which gives other zeros.
            is_steady = upstream == self._surprise and isfinite(upstream) and upstream != 0
            self.expected = upstream if is_steady else None
        self._surprise = upstream

    def for_forward(self, student: Tensor, reduction: int) -> float | None:
        """What forward expects."""
        if self.is_behind:
            self.catch_up()
        if self.expected == self.at_first:
            return self.expected
        # GradScaler's scale changes in time, and in a graph forward would write for the old one.
        stays = self.at_first is None and _is_captured(student)
        return self.at_first if stays or reduction == NONE else self.expected

    def look(self, ctx: Any, grad_loss: Tensor, expected: float | None) -> float | None:
        """What all of the rows' coefficients lack in a backward; None where that cannot be told.

        Args:
            ctx: of the backward, as `ndfast.saved` keeps it.
            grad_loss: the upstream gradient, of each row or 0-dim.
            expected: by its forward.
        """
        if grad_loss.dim() > 0:
            return None
        came = (grad_loss if ctx.backend.is_unscaled else grad_loss * saved.scale(ctx)).item()
        self.comes(came, expected)
        return came

    def catch_up(self) -> None:
        """Learns what has come meanwhile."""


class UpstreamOnGPU(Upstream):
    """Of the losses of one dtype of students, on a GPU."""

    __slots__ = ("_backwards_left", "_copy", "_expected_by_forward", "_wait")

    def forget(self) -> None:
        super().forget()
        self._copy: Tensor | None = None  # [2]: an upstream gradient and forward's scale
        self._expected_by_forward: float | None = None
        self._wait = _LONGEST_WAIT  # between two copies
        self._backwards_left = 0  # until the next

    def look(self, ctx: Any, grad_loss: Tensor, expected: float | None) -> None:
        """Now and then begins a copy."""
        if self._backwards_left > 0:
            self._backwards_left -= 1
            return
        if self.is_behind or grad_loss.dim() > 0 or _is_captured(grad_loss):
            return
        if not (grad_loss.is_cuda or grad_loss.is_cpu):
            return
        if self._copy is None:
            is_pinned = grad_loss.is_cuda  # or the copy would wait
            with torch.inference_mode(False):  # for backwards of any mode
                self._copy = torch.empty(2, dtype=grad_loss.dtype, pin_memory=is_pinned)
        _bits(self._copy).fill_(_NOT_YET)
        for place, factor in zip(self._copy, (grad_loss, saved.scale(ctx)), strict=True):
            place.copy_(factor, non_blocking=True)
        self._expected_by_forward = expected
        self.is_behind = True

    def catch_up(self) -> None:
        """Where the copy has arrived."""
        assert self._copy is not None
        if _NOT_YET in _bits(self._copy).tolist():
            return
        came, is_news = self._copy.prod().item(), self._surprise is None
        self.comes(came, self._expected_by_forward)
        if came == self._expected_by_forward:
            self._wait = _LONGEST_WAIT
        else:  # the next is copied as well, then fewer and fewer
            self._wait = 0 if is_news else min(2 * self._wait + 1, _LONGEST_WAIT)
        self._backwards_left = self._wait
        self.is_behind = False


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view({4: torch.int32, 8: torch.int64}[numbers.itemsize])


def _is_captured(tensor: Tensor) -> bool:
    """Whether what is launched goes into a CUDA graph, on the current device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


# Without GradScaler's scale, which is part of it, small gradients underflow in float16.
_AT_FIRST = {torch.float16: None, torch.bfloat16: 1.0, torch.float32: 1.0, torch.float64: 1.0}
BY_DTYPE = {dtype: Upstream(at_first) for dtype, at_first in _AT_FIRST.items()}
ON_GPUS: dict[tuple[torch.device, torch.dtype], UpstreamOnGPU] = {}


def of(student: Tensor) -> Upstream:
    """What is known for such a student's losses."""
    if student.is_cpu:
        return BY_DTYPE[student.dtype]
    key = student.device, student.dtype
    return ON_GPUS.get(key) or ON_GPUS.setdefault(key, UpstreamOnGPU(_AT_FIRST[student.dtype]))
