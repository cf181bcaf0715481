"""What a run raises where it cannot go on."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch.distributed as dist


class ConfigError(ValueError):
    """A run cannot start as it is configured; the message is one sentence that names the value."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are as they were."""


def has_lost_another_process(error: Exception) -> bool:
    """Whether an error comes of another process's end, which that process has told of."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    # Gloo raises a plain RuntimeError.
    return isinstance(error, dist.DistError) or "by peer" in str(error)


def import_package(name: str) -> Any:
    """Imports a package that fails in its own ways where it does not fit the torch that is there.

    Raises:
        ConfigError: it is there and cannot be imported.
        ModuleNotFoundError: it is not there.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the package {name} cannot be imported: {error}; expected a torchvision that was "
            "built for the torch that is there"
        ) from error
