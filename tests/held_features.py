"""What a step leaves behind of a batch's features."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Seen(list[weakref.ref[Tensor]]):
    """What modules were given, by weak references."""

    def held(self) -> int:
        """How many of them are still there."""
        return sum(reference() is not None for reference in self)


@contextmanager
def seen_by(*modules: nn.Module) -> Iterator[Seen]:
    """Without the garbage collector, which would hide a cycle."""
    seen = Seen()

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(weakref.ref(args[0]))

    handles = [module.register_forward_pre_hook(note) for module in modules]
    gc.collect()
    gc.disable()
    try:
        yield seen
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()
