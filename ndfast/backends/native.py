"""Finds and loads the compiled library (csrc/): C++ on the CPU, one pass over the rows.

The environment variable NDFAST_CPU_CAPABILITY (avx512, avx2 or portable; read at import) forces a
lower instruction set than the processor's highest, as `set_capability` does.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ndfast import private
from ndfast.backends import Rows

is_unscaled = True  # the rows are counted first
installed = find_spec("ndfast._C") is not None
try:
    from ndfast import _C  # type: ignore[attr-defined]  # noqa: F401  (registers the ops)

    missing = None
except ImportError as error:
    what = f"does not load ({error})" if installed else "is not there"
    missing = (
        f"the compiled library {what}; install ndfast with --no-build-isolation where a C++ "
        "compiler and torch are"
    )


def unusable(device: torch.device) -> str | None:
    """Needs the compiled library and CPU tensors."""
    return missing if device.type == "cpu" else "the compiled library is for the CPU"


def capability() -> str:
    """The instruction set in use: avx512, avx2 or portable."""
    return torch.ops.ndfast_native.capability()


def capabilities() -> list[str]:
    """The instruction sets that this processor and this build have, the highest first."""
    if missing is not None:
        return []
    names = ("avx512", "avx2", "portable")
    return list(names[names.index(_highest) :])


def set_capability(name: str, argument: str = "name") -> None:
    """Uses another instruction set.

    Raises:
        ValueError: this processor or this build lacks it.
    """
    if not torch.ops.ndfast_native.set_capability(name):
        raise ValueError(
            f"{argument}: {name!r} is no instruction set of this processor and build, which have "
            f"{', '.join(capabilities())}"
        )


if missing is None:
    _forward = private.without_frame(torch.ops.ndfast_native.forward.default)
    backward = torch.ops.ndfast_native.backward.default
    finish_gradient_ = torch.ops.ndfast_native.finish_gradient_.default
    _highest = capability()
    if os.environ.get("NDFAST_CPU_CAPABILITY"):
        set_capability(os.environ["NDFAST_CPU_CAPABILITY"], "NDFAST_CPU_CAPABILITY")


def forward(*arguments: Any, upstream: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and what backward needs; see `ndfast.backends`.

    Raises:
        IndexError: a label is out of range.
    """
    try:
        return _forward(*arguments, upstream)
    except RuntimeError as error:
        failed = error
    # The library looks at every label and cannot raise an IndexError itself.
    Rows(*arguments[:-2]).check_labels()
    raise failed
