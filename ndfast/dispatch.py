"""Which backend runs, and why.

The order: the argument, then `use_backend`, then the environment variable NDFAST_BACKEND (read at
import), then the fastest that is there. A backend asked for by name that cannot run raises. Where
the fastest that was installed cannot, a warning says once why, and what runs.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from functools import lru_cache
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor

from ndfast.backends import Rows

BACKENDS = ("native", "cuda", "triton", "reference")
_FASTEST_FIRST = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}

_NATIVE = import_module("ndfast.backends.native")

_default: str | None = os.environ.get("NDFAST_BACKEND") or None


def check_backend_name(name: str | None, argument: str = "backend") -> None:
    """Raises ValueError where ``name`` is no backend's."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{argument}: {name!r} is no backend; expected one of {BACKENDS} or None")


def _module(name: str) -> ModuleType:
    return import_module(f"ndfast.backends.{name}")  # late: importing triton takes a second


class use_backend:
    """Sets the backend for the whole process, as a call or as a context manager.

    Args:
        name: "native", "cuda", "triton", "reference", or None for the default order.

    Raises:
        ValueError: ``name`` is no backend's.

    Examples:
        >>> with ndfast.use_backend("reference"):
        ...     loss = ndfast.nd_loss(student, teacher, class_means, target)
    """

    def __init__(self, name: str | None) -> None:
        global _default
        check_backend_name(name, "name")
        self._name = name
        self._previous = [_default]  # one for each time that it is entered
        self._was_entered = False
        _default = name

    def __enter__(self) -> None:
        global _default
        if self._was_entered:
            self._previous.append(_default)
        self._was_entered = True
        _default = self._name

    def __exit__(self, *exception: object) -> None:
        global _default
        _default = self._previous.pop()


def available_backends() -> dict[str, str | None]:
    """What can run on this machine.

    Returns:
        For each backend None where it can run on some device here, or the sentence that says why
        it cannot.
    """
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.insert(0, torch.device("cuda"))
    reasons = {}
    for name in BACKENDS:
        said = [_module(name).unusable(device) for device in devices]
        reasons[name] = None if None in said else said[0]
    return reasons


def named(name: str | None) -> str | None:
    """The backend that is asked for by name, for a call that is carried out later than it is made.

    Under torch.compile, and in a backward, `use_backend` may have ended by then.
    """
    return name or _default


def choose(device: torch.device, name: str | None) -> Any:
    """The backend's module for tensors on ``device``; ``name`` is the call's argument.

    Raises:
        ValueError: NDFAST_BACKEND holds no backend's name.
        RuntimeError: the backend asked for by name cannot run here; the message says why.
    """
    return _choose(device, name or _default)


@lru_cache(maxsize=256)
def _choose(device: torch.device, name: str | None) -> Any:
    if name is not None:
        check_backend_name(name, "NDFAST_BACKEND")
        reason = _module(name).unusable(device)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot run on a {device.type} tensor: {reason}")
        return _module(name)
    passed_over: dict[str, str] = {}
    for candidate in _FASTEST_FIRST.get(device.type, ("reference",)):
        reason = _module(candidate).unusable(device)
        if reason is None:
            _say_what_runs(candidate, device, passed_over)
            return _module(candidate)
        passed_over[candidate] = reason
    raise AssertionError("the reference runs everywhere")


_said: set[str] = set()
_saying = threading.Lock()


def _say_what_runs(name: str, device: torch.device, passed_over: dict[str, str]) -> None:
    """Warns, once a process, that something slower runs than was installed, or the reference.

    Not where Triton runs beside a library without CUDA kernels: nobody was promised them.
    """
    if not passed_over or (name == "triton" and not _module("cuda").installed):
        return
    slower = ", several times slower than compiled code" if name == "reference" else ""
    reasons = "; ".join(f"{other!r} cannot: {reason}" for other, reason in passed_over.items())
    message = (
        f"nd_loss: backend {name!r} runs on {device.type} tensors{slower}. {reasons}. "
        f"NDFAST_BACKEND={name} or ndfast.use_backend({name!r}) chooses it without this warning"
    )
    with _saying:
        if message in _said:
            return
        _said.add(message)
    warnings.warn(message, stacklevel=_stacklevel())


def _stacklevel() -> int:
    """Of who called this package, or a module of it by way of torch; counted from its caller."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and _package_of(frame) in ("ndfast", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def run_forward(
    backend: Any, arguments: tuple[Any, ...], **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``backend.forward``, with a label out of range an IndexError on the CPU.

    A GPU would have to synchronise to look, so there such a row is NaN. The native backend looks in
    its own pass over the labels.
    """
    if backend is not _NATIVE and arguments[0].is_cpu:
        Rows(*arguments[:-2]).check_labels()
    return backend.forward(*arguments, **options)


@torch.no_grad()  # autograd is outside the ops, whoever calls them
def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The op nd_loss_forward on real tensors; its arguments, the backend's name last."""
    backend = choose(arguments[0].device, arguments[-1])
    return run_forward(backend, arguments[:-1])


@torch.no_grad()
def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The op nd_loss_backward on real tensors; its arguments, the backend's name last."""
    backend = choose(arguments[2].device, arguments[-1])
    return backend.backward(*arguments[:-1])
