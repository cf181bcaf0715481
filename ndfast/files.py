"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside ``path``, syncs and renames; what was there stays as it is until then.

    A link stays one, and the file that it leads to is replaced; a file keeps its permissions.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(f".{uuid.uuid4().hex}")  # as long as it is, whatever the file's name
    try:
        with open(partial, "xb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
