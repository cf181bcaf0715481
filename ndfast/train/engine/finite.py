"""Whether a step's losses and its gradient are finite, looked at once a step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class FiniteCheck:
    """Watches what must be finite, and tells before the optimiser steps.

    A finite loss can have a gradient that is not, which would end in every parameter and in every
    later checkpoint. So the answer waits for the backward pass: the one time in a step that the
    host waits for a GPU. All processes get the same answer.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._watched: list[Tensor] = []

    def watch(self, value: Tensor) -> None:
        """Takes in a loss or a norm, 0-dim, of the step to come."""
        self._watched.append(value.detach())

    def clip_and_watch(self, parameters: Iterable[Tensor], clip_norm: float | None = None) -> None:
        """Takes the parameters' gradient, after cutting it to ``clip_norm``.

        With float16's scale an infinite one is nothing unusual: the scaler leaves such a step out
        by itself, and lowers the scale.
        """
        parameters = list(parameters)
        if clip_norm is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, clip_norm)
        else:
            norm = _norm(value.grad for value in parameters if value.grad is not None)
        if self.accelerator.scaler is None:
            self.watch(norm)

    def all_finite(self) -> bool:
        """Whether all that was watched since the last call was finite."""
        bad = (~torch.stack(self._watched).isfinite()).any().float()
        self._watched.clear()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        return not bool(bad)

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Looks at parameters and buffers before a checkpoint is made of them.

        Raises:
            FloatingPointError: they are not finite.
        """
        self.watch(
            _norm(value for value in model.state_dict().values() if value.is_floating_point())
        )
        if not self.all_finite():
            raise FloatingPointError(
                f"the weights are NaN or infinite after step {step}; they are not saved, and the "
                "checkpoints before are kept; a lower learning rate may help"
            )


def _norm(values: Iterable[Tensor]) -> Tensor:
    parts = [value.detach() for value in values]
    # Of the largest values: a sum of squares may overflow where all of them are finite.
    return nn.utils.get_total_norm([part for part in parts if part.numel()], float("inf"))
