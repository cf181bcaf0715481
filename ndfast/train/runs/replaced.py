"""The files of a run that --overwrite replaces: kept aside until the new one has a checkpoint.

They go into a hidden folder by way of another, so that a kill at any moment leaves either all of
them in their places, or a folder that tells the next run what is to be put back.

What is replaced took hours, and the new run may fail before it has anything, by a wrong path for
one. The standard library renames one path at a time, and packages for atomic writes write one file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

# On its way there or back: what is in it is the old run's, and nothing of a new one is beside it.
_MOVING = ".replaced.moving"
_ASIDE = ".replaced"
_GONE = ".replaced.gone"
_CHECKPOINTS = ("checkpoints/step-*", "teacher/checkpoints/step-*", "runs/*/checkpoints/step-*")


def set_aside(folder: Path, names: Iterable[str]) -> None:
    """Moves those of the files and folders that are there out of the way."""
    moving = folder / _MOVING
    moving.mkdir()
    for name in names:
        if (folder / name).exists():
            (folder / name).rename(moving / name)
    moving.rename(folder / _ASIDE)


def settle(folder: Path, names: Iterable[str]) -> bool:
    """Removes what was set aside if the new run has a checkpoint; else puts it back.

    Args:
        folder: of the runs.
        names: of all that a run writes; what the new one wrote is removed where it got nowhere.

    Returns:
        Whether anything was put back.
    """
    aside, moving, gone = folder / _ASIDE, folder / _MOVING, folder / _GONE
    if aside.exists():
        if any(next(folder.glob(pattern), None) for pattern in _CHECKPOINTS):
            aside.rename(gone)
        else:
            remove(folder, names)
            aside.rename(moving)
    shutil.rmtree(gone, ignore_errors=True)
    if not moving.exists():
        return False
    for path in moving.iterdir():
        path.rename(folder / path.name)
    moving.rmdir()
    return True


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes those of the files and folders that are there."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
