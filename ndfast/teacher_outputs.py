"""A frozen teacher's logits and feature norms on disk, by the row of an image and its view.

A folder holds outputs.json, which describes them, and the outputs in pieces.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndfast import teacher_outputs_description as descriptions
from ndfast.files import expand_home
from ndfast.teacher_outputs_pieces import Piece, PieceFiles, has_pieces

_DESCRIPTION = "outputs.json"
_PIECE_BYTES = 2**26  # 64 MiB: what a kill loses at most, and what is held in memory to be written


class TeacherOutputs:
    """What a frozen teacher gives for each view of each image: logits and the norm of its features.

    A student needs no more of its teacher: `nd_loss` takes norms in place of the teacher's features
    beside the class means, and KD, DKD and DIST take logits. So the teacher runs once, for all
    students.

    A view is a number: of a crop and flip where these are finitely many, or an epoch where each has
    an augmentation of its own. The student must see the image in that very view.

    Outputs are made piece by piece, by any number of processes, and gone on with after a kill. They
    are read by memory map, by any number of processes.

    Args:
        path: a folder that `create` began.

    Attributes:
        rows: how many images there are.
        num_views: how many views of each.
        num_classes: K.
        dtype: of the logits, float32 or float16; norms are float32.
        metadata: what `create` was given.

    Raises:
        OSError: it cannot be read.
        ValueError: the folder holds no teacher's outputs, or their description is damaged.

    Examples:
        >>> outputs = ndfast.TeacherOutputs.create(
        ...     "outputs", rows=50_000, num_views=162, num_classes=100, teacher="resnet56"
        ... )
        >>> for piece in outputs.missing(rank, processes):
        ...     outputs.write(piece, *run_teacher(piece.view, range(piece.start, piece.stop)))
        >>> logits, norms = outputs.read(rows, views)
        >>> loss = kd(student_logits, logits) + ndfast.nd_loss(features, norms, class_means, labels)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expand_home(path)
        self._described = described = descriptions.read(self.path / _DESCRIPTION)
        self.rows = described.rows
        self.num_views = described.num_views
        self.num_classes = described.num_classes
        self.dtype = descriptions.DTYPES[described.dtype]
        self.metadata = described.metadata
        self._record = described.record()
        self._files = PieceFiles(self.path, self.rows, described.piece_rows, self._record)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        rows: int,
        num_views: int,
        num_classes: int,
        dtype: torch.dtype = torch.float32,
        **metadata: Any,
    ) -> TeacherOutputs:
        """Begins a folder, or opens one that was begun alike, by this process or another.

        Args:
            path: the folder, which need not be there.
            rows: how many images there are.
            num_views: how many views of each; a later call may ask for more, such as epochs.
            num_classes: K.
            dtype: of the logits: float32, exact to the bit, or float16, half the size.
            **metadata: what the outputs depend on, such as the teacher's weights and the data by
                their hashes, the augmentation, the precision: whatever JSON holds.

        Raises:
            TypeError: an argument has a type that is not taken.
            ValueError: an argument is not taken, or the folder was begun with another; names it.
            OSError: the folder cannot be written, or its disk has no room for what is missing.
        """
        sizes = {"rows": rows, "num_views": num_views, "num_classes": num_classes}
        asked = descriptions.describe(sizes, dtype, metadata, _PIECE_BYTES)
        folder = expand_home(path)
        # Looked for first: whoever wrote some had described them before.
        descriptions.begin(folder / _DESCRIPTION, asked, has_pieces(folder))
        outputs = cls(folder)
        outputs._check_room()
        return outputs

    @property
    def num_bytes(self) -> int:
        """What all outputs take on the disk."""
        return self.rows * self.num_views * self._record.itemsize

    def check(self, **expected: Any) -> None:
        """Compares some of the metadata.

        Raises:
            ValueError: one is not there, or another; names it.
        """
        descriptions.check_metadata(self.path, self.metadata, expected)

    def pieces(self, views: Iterable[int] | None = None) -> list[Piece]:
        """All that there are to be, of some views or of all.

        Raises:
            IndexError: a view is none of these outputs'.
        """
        chosen = range(self.num_views) if views is None else views
        return [
            piece for view in map(self._check_view, chosen) for piece in self._files.of_view(view)
        ]

    def missing(
        self, rank: int = 0, processes: int = 1, views: Iterable[int] | None = None
    ) -> list[Piece]:
        """The pieces that are still to be written, of this process's share.

        Args:
            rank: of this process, from 0.
            processes: how many share the work.
            views: those that are wanted; by default all.

        Raises:
            ValueError: ``rank`` is none of the processes.
            IndexError: a view is none of these outputs'.
        """
        if not 0 <= rank < processes:
            raise ValueError(f"rank: got {rank}; expected 0 to {processes - 1}")
        there = set(self._files.there())
        return [piece for piece in self.pieces(views)[rank::processes] if piece not in there]

    def write(self, piece: Piece, logits: Tensor, norms: Tensor) -> None:
        """Writes a piece, which appears whole or not at all.

        Args:
            piece: one of `pieces`.
            logits: [n, K] for its n rows, on any device; −inf for a class that the teacher lacks.
            norms: [n], ‖t‖ of the features.

        Raises:
            ValueError: the piece or a shape does not fit, a number is NaN or out of range, or the
                folder was begun anew, for other outputs.
            OSError: it cannot be written; what was there stays.
        """
        there = descriptions.read(self.path / _DESCRIPTION)
        descriptions.check_same(self.path, there, self._described)
        if piece not in self.pieces([piece.view]):
            raise ValueError(f"piece: got {tuple(piece)}; expected one of TeacherOutputs.pieces()")
        n = piece.stop - piece.start
        for name, value, shape in (
            ("logits", logits, (n, self.num_classes)),
            ("norms", norms, (n,)),
        ):
            if value.shape != shape:
                raise ValueError(f"{name}: got shape {list(value.shape)}; expected {list(shape)}")
        rounded = logits.detach().to(self.dtype)
        if rounded.isnan().any() or (rounded.isinf() & ~logits.isneginf()).any():
            raise ValueError(f"logits: got NaN, +Inf, or a number out of the range of {self.dtype}")
        norms = norms.detach().float()
        if not (norms.isfinite() & (norms >= 0)).all():
            raise ValueError("norms: got NaN, Inf or less than 0; expected the norms of features")
        records = np.empty(n, self._record)
        records["logits"], records["norm"] = rounded.cpu().numpy(), norms.cpu().numpy()
        self._files.write(piece, records)

    def read(
        self, rows: Sequence[int] | Tensor, views: Sequence[int] | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The outputs of n images, each in its view.

        Args:
            rows: of the images; integers, on the CPU.
            views: one a row; integers.

        Returns:
            Logits [n, K] of `dtype`, and norms float32 [n], on the CPU.

        Raises:
            TypeError: rows or views are no integers, such as a mask.
            IndexError: a row or a view is none of these outputs'.
            ValueError: rows and views differ in number or are not [n], or a piece is not there or
                cut short.
        """
        asked, in_views = _integers("rows", rows), _integers("views", views)
        if len(asked) != len(in_views):
            raise ValueError(
                f"views: got {len(in_views)} for {len(asked)} rows; expected one a row"
            )
        records = np.empty(len(asked), self._record)
        for place, (row, view) in enumerate(zip(asked, in_views, strict=True)):
            if not 0 <= row < self.rows:
                raise IndexError(f"rows: got {row}; {self.path} holds 0 to {self.rows - 1}")
            records[place] = self._files.row(self._check_view(view), row)
        logits, norms = (
            torch.from_numpy(np.ascontiguousarray(records[name])) for name in ("logits", "norm")
        )
        return logits, norms

    def verify(self, views: Iterable[int] | None = None) -> None:
        """Reads the pieces of some views, or of all, and compares each with its SHA-256.

        Raises:
            IndexError: a view is none of these outputs'.
            ValueError: a piece is not there, or damaged; names it.
        """
        for piece in self.pieces(views):
            self._files.verify(piece)

    def _check_view(self, view: int) -> int:
        if not 0 <= view < self.num_views:
            raise IndexError(f"views: got {view}; {self.path} holds 0 to {self.num_views - 1}")
        return index(view)

    def _check_room(self) -> None:
        """Raises OSError if the disk has not the room for what is missing."""
        there = sum(piece.stop - piece.start for piece in self._files.there())
        needed = self.num_bytes - self._record.itemsize * there
        free = shutil.disk_usage(self.path).free
        if needed > free:
            if not there:  # nothing holds the folder to what there is no room for
                (self.path / _DESCRIPTION).unlink(missing_ok=True)
            sizes = f"{needed / 1e9:.1f} GB are still to be written, {free / 1e9:.1f} GB are free"
            raise OSError(errno.ENOSPC, f"the disk is too small: {sizes}", str(self.path))


def _integers(name: str, given: Sequence[int] | Tensor) -> list[int]:
    found = np.asarray(given)
    if found.ndim != 1:
        raise ValueError(f"{name}: got shape {list(found.shape)}; expected [n]")
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {found.dtype}; expected integers")
    return found.tolist()
