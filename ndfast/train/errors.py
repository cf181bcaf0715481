"""What a run raises where it cannot go on."""

from __future__ import annotations


class ConfigError(ValueError):
    """A run cannot start as it is configured; the message is one sentence that names the value."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are as they were."""
