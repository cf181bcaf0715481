"""The upstream gradient that the next backward will bring, by what the last ones have brought.

The fused way writes the student's gradient in forward, for an upstream gradient that is not known
yet. From step to step it is mostly the same: 1, a weight of the loss, GradScaler's scale. So one
that has come twice running is expected to come again. Where another comes, backward writes the
gradient anew: to expect it wrongly takes time, and changes no bit of a result.

Only where a look at the gradient waits for no GPU, and never under torch.compile.
"""

from __future__ import annotations

from math import isfinite

import torch


class Upstream:
    """Of the losses of one dtype of students.

    Attributes:
        at_first: what is expected while none has come twice running; None: there is no telling.
        expected: what to write a student's gradient for in forward; None: that has to wait.
    """

    __slots__ = ("_last", "at_first", "expected")

    def __init__(self, at_first: float | None) -> None:
        self.at_first = self.expected = at_first
        self._last: float | None = None

    def has_come(self, upstream: float) -> None:
        """Learns from the upstream gradient of a backward."""
        again = upstream == self._last and isfinite(upstream)
        self.expected = upstream if again else self.at_first
        self._last = upstream


# Without GradScaler's scale, which is part of it, small gradients underflow in float16.
BY_DTYPE = {
    torch.float16: Upstream(at_first=None),
    torch.bfloat16: Upstream(at_first=1.0),
    torch.float32: Upstream(at_first=1.0),
    torch.float64: Upstream(at_first=1.0),
}
