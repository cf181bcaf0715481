"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside ``path``, syncs and renames; what was there stays as it is until then.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
