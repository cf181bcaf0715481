"""Ctrl-C ends a run whenever it comes, also where Python or a worker would lose it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="needs the extra [train]")

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.data.batches import TrainingBatches, load
from ndfast.train.interrupts import uninterrupted
from ndfast.train.machine.processes import torch_settings

at_a_fork: list[Callable[[], None]] = []
os.register_at_fork(before=lambda: [call() for call in at_a_fork])


def press() -> None:
    signal.raise_signal(signal.SIGINT)


class Pressing:
    """Ctrl-C comes while it is deleted."""

    def __del__(self) -> None:
        press()


def loaded() -> Iterator[tuple[Tensor, Tensor]]:
    """Ten batches, by two workers."""
    train = build_data("synthetic:40,10,1x2x2").train
    return load(train, TrainingBatches(40, 4, 0, 0, 0, 1), 2, torch.device("cpu"))


def test_one_that_python_drops_comes_again() -> None:
    hook = sys.unraisablehook

    def drop_one() -> None:
        with torch_settings(TrainConfig()):
            Pressing()
            for thread in threading.enumerate():
                if isinstance(thread, threading.Timer):
                    thread.join()

    with pytest.raises(KeyboardInterrupt):
        drop_one()
    assert sys.unraisablehook is hook


def test_what_else_python_drops_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError

    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    with torch_settings(TrainConfig()):
        Failing()
    assert told == [ValueError]


def test_it_waits_while_workers_are_forked() -> None:
    at_a_fork.append(press)
    try:
        with pytest.raises(KeyboardInterrupt):
            loaded()
    finally:
        at_a_fork.clear()


def test_workers_leave_it_to_the_main_process() -> None:
    batches = loaded()
    found = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    found += batches
    assert len(found) == 10


def test_it_waits_for_the_end_of_the_block_and_no_longer() -> None:
    handler = signal.getsignal(signal.SIGINT)
    reached = []

    def press_in_the_block() -> None:
        with uninterrupted():
            press()
            reached.append("end")

    with pytest.raises(KeyboardInterrupt):
        press_in_the_block()
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is handler
    with uninterrupted():
        pass  # the one before is forgotten


def test_another_thread_loads_as_well() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len([*loaded()])))
    thread.start()
    thread.join()
    assert found == [10]
