"""The time of a training step by its parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

# A part's end on a GPU is seen only by waiting for it: one step in so many is timed there.
GPU_EVERY = 50
KEPT = 1000


class Stopwatch:
    """Times the parts of steps, on a GPU those of some steps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._every = 1 if device.type == "cpu" else GPU_EVERY
        self._step = 0
        self._now: dict[str, float] = {}
        self._parts: dict[str, deque[float]] = {}
        self._started = perf_counter()
        self._seconds, self._steps = 0.0, 0

    def start_step(self) -> None:
        self._started = perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the block's time to this step's part ``name``."""
        start = self._read()
        try:
            yield
        finally:
            self._add(name, start)

    def watch(self, name: str, module: nn.Module) -> None:
        """Makes every forward pass of ``module`` the part ``name``, which lies in another part."""
        start: list[float | None] = []

        def before(*_: Any) -> None:
            start.append(self._read())

        def after(*_: Any) -> None:
            self._add(name, start.pop())

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def end_step(self) -> None:
        for name, seconds in self._now.items():
            self._parts.setdefault(name, deque(maxlen=KEPT)).append(seconds)
        self._now = {}
        self._step += 1
        self._seconds += perf_counter() - self._started
        self._steps += 1

    def seconds_per_step(self) -> float:
        """The mean wall time of the steps since the last call."""
        mean = self._seconds / max(self._steps, 1)
        self._seconds, self._steps = 0.0, 0
        return mean

    def medians_ms(self) -> dict[str, float]:
        """The median of each part, in milliseconds, over at most `KEPT` timed steps."""
        return {name: 1e3 * median(seconds) for name, seconds in self._parts.items()}

    def _read(self) -> float | None:
        if self._step % self._every:
            return None
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return perf_counter()

    def _add(self, name: str, start: float | None) -> None:
        end = self._read()
        if start is not None and end is not None:
            self._now[name] = self._now.get(name, 0.0) + end - start
