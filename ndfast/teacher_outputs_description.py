"""What a folder of `ndfast.TeacherOutputs` says of itself, in its outputs.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ndfast.files import write_whole

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Description(NamedTuple):
    """Sizes, dtype of the logits, and what the outputs depend on."""

    rows: int
    num_views: int
    num_classes: int
    piece_rows: int
    dtype: str
    metadata: dict[str, Any]

    def record(self) -> np.dtype:
        """What is kept of a row and a view."""
        return _record(self.num_classes, self.dtype)


def _record(num_classes: int, dtype: str) -> np.dtype:
    fields: list[Any] = [("norm", "f4"), ("logits", dtype, (num_classes,))]
    return np.dtype(fields).newbyteorder("<")


def describe(
    sizes: Mapping[str, int], dtype: torch.dtype, metadata: Mapping[str, Any], piece_bytes: int
) -> Description:
    """A checked description of ``sizes``: rows, num_views and num_classes; pieces are no larger.

    Raises:
        TypeError: a size is no int, or JSON does not hold the metadata.
        ValueError: a size is less than 1, or the dtype not taken.
    """
    for name, value in sizes.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name}: got {type(value).__name__}; expected an int")
        if value < 1:
            raise ValueError(f"{name}: got {value}; expected 1 or more")
    names = [name for name, of_torch in DTYPES.items() if of_torch == dtype]
    if not names:
        raise ValueError(f"dtype: got {dtype}; expected torch.float32 or torch.float16")
    ints = {name: int(value) for name, value in sizes.items()}
    fitting = piece_bytes // _record(ints["num_classes"], names[0]).itemsize
    piece_rows = max(1, min(ints["rows"], fitting))
    return Description(**ints, piece_rows=piece_rows, dtype=names[0], metadata=_as_json(metadata))


def read(path: Path) -> Description:
    """Reads a description.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("sha256")
        found = Description(**content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: does not describe a teacher's outputs ({type(error).__name__})"
        ) from error
    if digest != _digest(found):
        raise ValueError(f"{path}: its SHA-256 does not fit: the file is damaged")
    return found


def encode(description: Description) -> bytes:
    """The description as `read` takes it."""
    content = description._asdict() | {"sha256": _digest(description)}
    return json.dumps(content, indent=2).encode()


def begin(path: Path, asked: Description, has_pieces: bool) -> None:
    """Writes a description to ``path`` where there is none, or one of fewer views.

    Raises:
        ValueError: other outputs are there, be they of nobody knows what: there are pieces, and
            nothing describes them.
        OSError: it cannot be written.
    """
    folder = path.parent
    there = read(path) if path.exists() else None
    if there is not None:
        check_same(folder, there, asked)
        asked = asked._replace(piece_rows=there.piece_rows)
    elif has_pieces:
        raise ValueError(
            f"path: got {folder}, which holds outputs without {path.name}; whose they "
            "are is not known; expected a new folder"
        )
    if there is None or asked.num_views > there.num_views:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, encode(asked))
        check_same(folder, read(path), asked)  # another process may have begun others just now


def check_same(folder: Path, there: Description, asked: Description) -> None:
    """Raises ValueError, naming what differs, if a folder holds other outputs than are asked for.

    Their number of views may differ.
    """
    for name in ("rows", "num_classes", "dtype"):
        was, now = getattr(there, name), getattr(asked, name)
        if was != now:
            raise ValueError(f"{name}: got {now}, but {folder} was made with {was}")
    check_metadata(folder, there.metadata, asked.metadata)
    for name, value in there.metadata.items():
        if name not in asked.metadata:
            raise ValueError(f"{name}: got none, but {folder} was made with {value!r}")


def check_metadata(folder: Path, there: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError, naming it, for the first that is not there or another."""
    for name, value in _as_json(expected).items():
        if name not in there:
            raise ValueError(
                f"{name}: expected {value!r}, but {folder} does not say of which it is"
            )
        if there[name] != value:
            raise ValueError(
                f"{name}: expected {value!r}, but {folder} was made with {there[name]!r}"
            )


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples as lists."""
    try:
        return json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata: {error}; expected what JSON holds") from error


def _digest(description: Description) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
