"""The files of `ndfast.TeacherOutputs`: pieces of some rows of one view, in NumPy's format.

A piece's name ends in its SHA-256, and it appears whole or not at all: what is there can be
checked, and a kill loses no more than the piece that was being written.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndfast.files import write_whole

_NAME = re.compile(r"view(\d+)-row(\d+)\.([0-9a-f]{64})\.npy")


class Piece(NamedTuple):
    """The outputs of one view of the rows from ``start`` to before ``stop``."""

    view: int
    start: int
    stop: int


def has_pieces(folder: Path) -> bool:
    """Whether there is any."""
    return folder.is_dir() and any(map(_NAME.fullmatch, os.listdir(folder)))


class PieceFiles:
    """The pieces in a folder.

    Args:
        folder: where they are.
        rows: of all pieces of a view.
        piece_rows: of each, but for a view's last.
        record: a row's dtype.
    """

    def __init__(self, folder: Path, rows: int, piece_rows: int, record: np.dtype) -> None:
        self.folder, self.rows, self.piece_rows, self.record = folder, rows, piece_rows, record
        self._names: dict[tuple[int, int], str] = {}  # by view and first row
        self._maps: dict[tuple[int, int], np.ndarray] = {}

    def of_view(self, view: int) -> list[Piece]:
        """Those that there are to be."""
        starts = range(0, self.rows, self.piece_rows)
        return [Piece(view, start, self._stop(start)) for start in starts]

    def there(self) -> list[Piece]:
        """Those that are written."""
        self._look()
        return [Piece(view, start, self._stop(start)) for view, start in self._names]

    def write(self, piece: Piece, records: np.ndarray) -> None:
        """Writes one; what was there stays where that fails.

        Raises:
            OSError: it cannot be written.
        """
        data = io.BytesIO()
        np.lib.format.write_array(data, records, allow_pickle=False)
        digest = hashlib.sha256(data.getbuffer()).hexdigest()
        name = f"view{piece.view:05}-row{piece.start:09}.{digest}.npy"
        write_whole(self.folder / name, data.getvalue())

    def row(self, view: int, row: int) -> np.void:
        """A row's record.

        Raises:
            ValueError: its piece is not there, or cut short.
        """
        start = row - row % self.piece_rows
        found = self._maps.get((view, start))
        return (self._open(view, start) if found is None else found)[row - start]

    def verify(self, piece: Piece) -> None:
        """Reads it whole.

        Raises:
            ValueError: it is not there, or damaged; names it.
        """
        name = self._name(piece.view, piece.start)
        if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() not in name:
            raise _damaged(self.folder / name, "its SHA-256 does not fit")

    def _stop(self, start: int) -> int:
        return min(start + self.piece_rows, self.rows)

    def _open(self, view: int, start: int) -> np.ndarray:
        path = self.folder / self._name(view, start)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:  # the header, or too few bytes
            raise _damaged(path, str(error)) from error
        if found.dtype != self.record or found.shape != (self._stop(start) - start,):
            raise _damaged(path, "it holds other records")
        self._maps[view, start] = np.asarray(found)  # a memmap takes ten times as long to index
        return self._maps[view, start]

    def _name(self, view: int, start: int) -> str:
        if (view, start) not in self._names:
            self._look()
        if (view, start) not in self._names:
            raise ValueError(
                f"{self.folder}: the outputs of view {view} from row {start} on are not there; "
                "they have not been made to the end"
            )
        return self._names[view, start]

    def _look(self) -> None:
        """For what is there; of two pieces of the same rows always the same one."""
        found = filter(None, map(_NAME.fullmatch, sorted(os.listdir(self.folder))))
        self._names = {(int(name[1]), int(name[2])): name[0] for name in found}

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's worker: a memory map would be copied whole."""
        return self.__dict__ | {"_maps": {}}


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path}: is damaged ({why}); remove it and make the outputs again, which makes it alone"
    )
