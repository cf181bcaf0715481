"""Where a training stands, and who is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast.train.errors import ConfigError


class Log(Protocol):
    """Is told of steps, skipped batches and epochs; see `ndfast.train.runs.records`."""

    def write(self, event: str, **values: Any) -> None: ...


class Bar(Protocol):
    """Is told of each step and what to show beside it; see `ndfast.train.machine.progress`."""

    def advance(self, **values: float) -> None: ...

    def show(self, **values: float) -> None: ...


class Silent:
    """A `Log` and a `Bar` that nobody reads."""

    def write(self, event: str, **values: Any) -> None:
        pass

    def advance(self, **values: float) -> None:
        pass

    def show(self, **values: float) -> None:
        pass


@dataclass
class Position:
    """Where a training stands; a checkpoint holds it.

    Args:
        data: the data set's name, which tells it from others.
        processes: that share the batches.
        epoch: from 0.
        step: of the optimiser, in the whole training; skipped batches count.
        skipped: batches that were skipped.
        in_a_row: those of them since the last that was not.
        sums: of the epoch's losses.
        counted: steps in ``sums``.
    """

    data: str
    processes: int
    epoch: int = 0
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    counted: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where another was; a step of other data or processes would be another step.

        Raises:
            ConfigError: its data or processes were others.
        """
        for name in ("data", "processes"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"resume: the checkpoint is of {name} {state[name]}, this run has "
                    f"{getattr(self, name)}; a resumed run takes the same"
                )
        for name, value in state.items():
            setattr(self, name, value)

    def count(self, losses: list[dict[str, Tensor]]) -> None:
        """Adds a step's losses, by batch and name, to the sums; on a GPU they stay there."""
        for name in losses[0]:
            mean = torch.stack([found[name] for found in losses]).mean().double()
            self.sums[name] = self.sums.get(name, 0.0) + mean
        self.counted += 1

    def settle(self, accelerator: Accelerator) -> None:
        """Makes it the same in every process: a checkpoint keeps the main one's."""
        if self.sums:
            values = [torch.as_tensor(value, dtype=torch.float64) for value in self.sums.values()]
            sums = torch.stack(values).to(accelerator.device)
            means = accelerator.reduce(sums, "mean").tolist()
            self.sums = dict(zip(self.sums, means, strict=True))

    def end_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        """The means of the epoch's losses over its steps; the next epoch begins."""
        self.settle(accelerator)
        means = {name: value / self.counted for name, value in self.sums.items()}
        self.epoch += 1
        self.sums, self.counted = {}, 0
        return means
