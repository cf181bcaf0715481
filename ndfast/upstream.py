"""The upstream gradient that the next backward will bring, by what the last ones have brought.

The fused way writes the student's gradient in forward, for an upstream gradient that is not known
yet. From step to step it is mostly the same: 1, a weight of the loss, GradScaler's scale. Where
another one than expected comes, backward writes the gradient anew, which takes time and changes no
bit of a result. Where the same one does so twice, it is expected from then on.

Only where a look at the gradient waits for no GPU, and never under torch.compile.
"""

from __future__ import annotations

from math import isfinite

import torch


class Upstream:
    """Of the losses of one dtype of students.

    Attributes:
        at_first: what is expected before anything has come; None: there is no telling.
        expected: what to write a student's gradient for in forward; None: that has to wait.
    """

    __slots__ = ("_surprise", "at_first", "expected")

    def __init__(self, at_first: float | None) -> None:
        self.at_first = self.expected = at_first
        self._surprise: float | None = None  # the last one that was not expected

    def surprises(self, upstream: float) -> None:
        """Learns that a backward has brought this one, and it was not expected."""
        if upstream == self._surprise and isfinite(upstream):
            self.expected = upstream
        self._surprise = upstream

    def forget(self) -> None:
        """As before anything has come."""
        self.expected, self._surprise = self.at_first, None


# Without GradScaler's scale, which is part of it, small gradients underflow in float16.
BY_DTYPE = {
    torch.float16: Upstream(at_first=None),
    torch.bfloat16: Upstream(at_first=1.0),
    torch.float32: Upstream(at_first=1.0),
    torch.float64: Upstream(at_first=1.0),
}
