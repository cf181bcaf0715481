"""Checkpoints that appear whole or not at all, in a ring, each with the SHA-256 of its files.

Accelerate writes and reads what is in them: weights, optimiser, scaler, the generators of random
numbers of every process, and the objects registered with it. A damaged file would pass it unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ndfast.files import reason_in
from ndfast.train.errors import CheckpointError, has_lost_another_process

_MANIFEST = "sha256.json"
_PARTIAL = ".partial"


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> str:
    """Writes a checkpoint, removes those of later steps and the oldest beyond ``keep``.

    Every process must call this. Those of later steps were broken: `load_newest_checkpoint` passed
    them over.

    Written beside, synced to the disk and renamed: whoever is killed meanwhile leaves the older
    ones and a folder that nobody reads.

    Returns:
        The checkpoint's name.

    Raises:
        CheckpointError: it could not be written, a full disk for one.
    """
    partial, name = folder / _PARTIAL, f"step-{step:010d}"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _seal(partial)
            shutil.rmtree(folder / name, ignore_errors=True)
            partial.rename(folder / name)
            _sync(folder)
            checkpoints = _newest_first(folder)
            own = checkpoints.index(folder / name)
            for other in (*checkpoints[:own], *checkpoints[own + keep :]):
                shutil.rmtree(other)
    # torch.save and safetensors tell of a full disk by a RuntimeError and an error of their own.
    except Exception as error:
        if has_lost_another_process(error):
            raise
        reason = reason_in(folder if folder.exists() else folder.parent, error)
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {folder}: {reason}; those before "
            "it are kept"
        ) from error
    accelerator.wait_for_everyone()
    return name


def load_newest_checkpoint(
    accelerator: Accelerator, folder: Path, tell: Callable[[str], None]
) -> bool:
    """Reads the newest checkpoint that is whole; every process must call this.

    ``tell`` is called with a sentence for each broken one that is passed over.

    Returns:
        Whether there was one.
    """
    found: list[Path | None] = [None]
    if accelerator.is_main_process:
        checkpoints = _newest_first(folder)
        for path in checkpoints:
            if _is_whole(path):
                found = [path]
                break
            tell(f"{path} is broken; it is passed over")
        if checkpoints and found[0] is None:
            tell(f"{folder} has no checkpoint that is whole; the run begins anew")
    broadcast_object_list(found)
    if found[0] is None:
        return False
    accelerator.load_state(str(found[0]))
    return True


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _seal(folder: Path) -> None:
    """Writes the files' SHA-256, with each synced to the disk."""
    sums = {name: _digest(folder / name) for name in _names(folder)}
    for name in sums:
        _sync(folder / name)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps(sums), encoding="utf-8")
    _sync(manifest)
    _sync(folder)


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        # Systems leave hidden files of their own in a folder: .nfs..., .DS_Store.
        names = {name for name in _names(folder) if not Path(name).name.startswith(".")}
        return bool(sums) and all(
            sums[name] == _digest(folder / name) for name in names | sums.keys()
        )
    except (OSError, ValueError, AttributeError, KeyError):
        return False


def _names(folder: Path) -> list[str]:
    """A checkpoint's files, without the manifest."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST]
    return sorted(str(path.relative_to(folder)) for path in files)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Waits until the disk has a file or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
