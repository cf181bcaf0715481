"""Files that several rooms write: JSON, class means; and whether a folder takes any."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ndfast.files import reason_of, write_whole
from ndfast.train.errors import CheckpointError, ConfigError

CLASS_MEANS = "class_means.safetensors"


@contextmanager
def writing_results(out: Path, kept: str) -> Iterator[None]:
    """Makes an OSError of the block a CheckpointError, which says what of the run is ``kept``."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the results cannot be written to {error.filename or out}: {reason_of(error)}; the "
            f"{kept} are kept, --resume goes on from them"
        ) from error


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Makes an OSError of the block a ConfigError that names ``out``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"out: cannot write to {str(out)!r}: {reason_of(error)}") from error


def check_writable(folder: Path, out: Path) -> None:
    """Raises ConfigError, naming ``out``, if no file can be written into a folder."""
    with writing_to(out), tempfile.TemporaryFile(dir=folder):
        pass


def read_json(path: Path) -> dict[str, Any]:
    """A file that `write_json` wrote.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"out: {path} cannot be read: {error}") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes whole or not at all."""
    write_whole(path, json.dumps(without_nan(values), indent=1, allow_nan=False).encode())


def without_nan(value: Any) -> Any:
    """The same with None for NaN and Inf, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
