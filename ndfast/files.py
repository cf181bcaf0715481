"""Writing a file so that it appears whole or not at all, and why one could not be written."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import uuid
from pathlib import Path

_TRIED_BYTES = 1 << 20
# What Synology, macOS in archives and ext4 put beside a user's folders.
_OF_SYSTEMS = frozenset(("@eaDir", "__MACOSX", "lost+found"))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is nobody's data: .ipynb_checkpoints, ._photo.jpg."""
    return name.startswith(".") or name in _OF_SYSTEMS


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path, with ``~`` or ``~user`` at its start as that user's home folder, as a shell does.

    Of a user that is not there it stays as it is.
    """
    return Path(os.path.expanduser(path))


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside ``path``, syncs and renames; what was there stays as it is until then.

    A link stays one, and the file that it leads to is replaced; a file keeps its permissions.

    Raises:
        OSError: it cannot be written, and names ``path``; nothing is left behind.
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
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # a full disk names no file by itself
        raise
    finally:
        partial.unlink(missing_ok=True)


def reason_of(error: OSError) -> str:
    """Why a file could not be written or read, in a few words."""
    reason = error.strerror or str(error)
    return f"the disk is full: {reason}" if error.errno == errno.ENOSPC else reason


def reason_in(folder: Path, error: Exception) -> str:
    """Why a library could not write into a folder, whose own words may be of its insides.

    torch.save tells of a full disk by "unexpected pos 64 vs 0" or "iostream error". So another file
    is tried while what was written is still there.
    """
    if not isinstance(error, OSError):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(_TRIED_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as told:
            error = told
    if isinstance(error, OSError):
        return reason_of(error)
    return (str(error).splitlines() or [type(error).__name__])[0]
