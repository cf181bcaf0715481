"""Ctrl-C, where Python or a worker would lose it.

Neither PyTorch nor Accelerate sees to that: a DataLoader waits for its workers in a ``__del__``,
where Python drops what is raised, and its workers take the terminal's signal as well.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS = 0.1


@contextmanager
def dropped_interrupts_come_again() -> Iterator[None]:
    """Raises a KeyboardInterrupt once more that Python has printed as "Exception ignored in".

    So it does with one that comes in a ``__del__`` (a DataLoader's waits for its workers' end, and
    each batch of theirs has some), and the training would go on.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # Not at once: it would be dropped again, being raised in here.
            threading.Timer(_SECONDS, _thread.interrupt_main).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and processes that are forked in it do not heed it.

    A terminal sends it to them as well, and their end may be noticed first, as an error.
    """
    if threading.current_thread() is not threading.main_thread():  # no other gets a signal
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)
