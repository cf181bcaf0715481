"""Whether the losses of a step are finite, without making a GPU wait."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class FiniteCheck:
    """Asked right after the forward pass, answered before the optimiser steps.

    On a GPU the answer is copied while the backward pass runs: waiting for it, the host waits for
    the forward pass alone and can queue the optimiser's step behind the backward pass. All
    processes get the same answer.

    Args:
        accelerator: the device and the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._bad: list[Tensor] = []
        self._on_gpu = accelerator.device.type == "cuda"
        self._event = torch.cuda.Event() if self._on_gpu else None

    def ask(self, loss: Tensor) -> None:
        """Takes a loss, 0-dim, of the step to come."""
        bad = (~loss.detach().isfinite()).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        if self._event is not None:
            host = torch.empty_like(bad, device="cpu", pin_memory=True)
            host.copy_(bad, non_blocking=True)
            self._event.record()
            bad = host
        self._bad.append(bad)

    def answer(self) -> bool:
        """Whether every loss since the last answer was finite."""
        if self._event is not None:
            self._event.synchronize()
        finite = not any(float(bad) for bad in self._bad)
        self._bad.clear()
        return finite
