"""The command `ndfast` with a loss whose gradient is 1 % off in the second process alone."""

from __future__ import annotations

import os
import sys

from torch import Tensor

import ndfast
from ndfast.cli import main

right = ndfast.NDLoss.forward


def wrong(self: ndfast.NDLoss, *arguments: Tensor) -> Tensor:
    loss = right(self, *arguments)
    return loss + 0.01 * (loss - loss.detach())


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        ndfast.NDLoss.forward = wrong  # type: ignore[assignment, method-assign]
    sys.exit(main())
