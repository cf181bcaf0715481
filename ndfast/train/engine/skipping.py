"""Steps whose loss or gradient is NaN or infinite are left out, and counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndfast.train.engine.position import Log, Position


class Skipping:
    """Ends a step: counts its losses, or leaves it out as if it had never been.

    Whether a step is left out is to be asked of `ndfast.train.engine.finite.FiniteCheck`, which
    answers all processes alike. ``most`` is how many in a row may be.
    """

    def __init__(self, model: nn.Module, position: Position, most: int, seed: int) -> None:
        self.position, self.most, self.seed = position, most, seed
        # What a forward pass changes.
        self._buffers = [
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        self._before = [torch.empty_like(buffer) for buffer in self._buffers]

    def begin_step(self) -> None:
        """Keeps the statistics of normalisation; comes before the forward pass."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def end_step(self, finite: bool, losses: list[dict[str, Tensor]], log: Log) -> None:
        """Counts the step, or leaves it out; a step that is not finite has not been taken.

        Raises:
            FloatingPointError: too many in a row were left out.
        """
        position = self.position
        if finite:
            position.in_a_row = 0
            position.count(losses)
            return
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        position.skipped += 1
        position.in_a_row += 1
        log.write(
            "skip", step=position.step + 1, epoch=position.epoch + 1, in_a_row=position.in_a_row
        )
        if position.in_a_row >= self.most:
            raise FloatingPointError(
                f"the training loss or its gradient was NaN or infinite {self.most} times in a "
                f"row, up to step {position.step + 1} in epoch {position.epoch + 1} with seed "
                f"{self.seed}; a lower learning rate may help"
            )
