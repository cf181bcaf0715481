"""Which rows make a batch, and how each is augmented: functions of seeds and epoch alone.

A run that was interrupted goes on at any step with the batches that it would have had, and an image
is augmented alike in batches of any size, in any order, and on however many processes.

Seeds are mixed by a few lines of ours and not by NumPy's SeedSequence: any other way gives other
batches and views, to a run that goes on, to outputs of a teacher that are kept for a data seed, and
to every figure that was published of a seed. Nor does SeedSequence take an array of rows at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ndfast.train.interrupts import uninterrupted

_UINT64 = 2**64 - 1


class Batch(NamedTuple):
    """What a sampler asks a dataset for.

    Args:
        indices: the rows.
        views: a number a row that decides its augmentation, and nothing else does; from 0 to
            2⁶³ − 1. None for none, as in evaluation.
        epoch: from 0, that they are drawn for.
    """

    indices: list[int]
    views: list[int] | None
    epoch: int = 0


class BatchDataset(Protocol):
    """A dataset that fetches a whole batch at once."""

    @property
    def num_views(self) -> int | None:
        """How many views an image has, of the numbers' remainders; None where each has its own.

        1 where a view does not change it.
        """
        ...

    @property
    def preprocessing(self) -> str:
        """What decides the image of a row and a view, besides the data."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Returns images float32 [n, C, ...] and labels int64 [n], and what else there is."""
        ...


class TrainingBatches(Sampler[Batch]):
    """The full batches of one epoch in a new order, shared out over the processes.

    The rows of a last batch that would not be full are left out: batch normalisation cannot train
    on one row, and no process may have more steps than another.

    Seed and epoch decide the order, the data seed and the epoch the augmentation, see `draw_views`.
    The batch size is a process's.

    Attributes:
        epoch: from 0; to be set before each.
        start: the first of the epoch's batches to be given; 0 but after an interruption.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int, data_seed: int, rank: int, processes: int
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.data_seed = data_seed
        self.rank = rank
        self.processes = processes
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self.rows // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = torch.randperm(self.rows, generator=generator)
        for step in range(self.start, len(self)):
            first = (step * self.processes + self.rank) * self.batch_size
            indices = order[first : first + self.batch_size].tolist()
            yield Batch(indices, draw_views(self.data_seed, self.epoch, indices), self.epoch)


class EvaluationBatches(Sampler[Batch]):
    """Every row in order, shared out over the processes in batches of as many rows.

    Each process has as many batches as any other: those that exceed the rows repeat row 0 and are
    told by `counted`. A data seed augments the rows as in epoch 0 of a training.
    """

    def __init__(
        self, rows: int, batch_size: int, rank: int, processes: int, data_seed: int | None = None
    ) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, -(-rows // processes))
        self.rank = rank
        self.processes = processes
        self.data_seed = data_seed

    def __len__(self) -> int:
        return -(-self.rows // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            first, counted = self._share(step)
            indices = [*range(first, first + counted), *([0] * (self.batch_size - counted))]
            views = None if self.data_seed is None else draw_views(self.data_seed, 0, indices)
            yield Batch(indices, views)

    def counted(self, step: int) -> int:
        """How many rows of this process's batch ``step`` count; the rest fill it up."""
        return self._share(step)[1]

    def _share(self, step: int) -> tuple[int, int]:
        first = (step * self.processes + self.rank) * self.batch_size
        return first, min(max(self.rows - first, 0), self.batch_size)


def load(
    dataset: BatchDataset, batches: Iterable[Batch], workers: int, device: torch.device
) -> Iterator[Any]:
    """Loads ``batches`` of ``dataset``, in ``workers`` processes besides this one."""
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # it has __getitems__ and needs no __getitem__
        batch_sampler=batches,  # type: ignore[arg-type]  # a Batch is more than a list of indices
        collate_fn=_as_fetched,  # type: ignore[arg-type]  # nor a list of rows
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # Its own: a loader that is made draws a number, and a resumed run makes one more.
        generator=torch.Generator(),
    )
    with uninterrupted():
        return iter(loader)


def _as_fetched(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch


def draw_views(data_seed: int, epoch: int, rows: list[int]) -> list[int]:
    """The number of each row's view in an epoch: a function of these three alone."""
    views = _mix(mix_seeds(data_seed, epoch), np.array(rows, dtype=np.uint64))
    return (views >> 1).tolist()


def mix_seeds(*numbers: int) -> int:
    """One seed from several, so that none of them being one larger gives another's neighbour."""
    return reduce(_mix, numbers, 0) % 2**63


def _mix(mixed: Any, number: Any) -> Any:
    """One more number, or a uint64 array of them, by splitmix64 (Steele et al., OOPSLA 2014)."""
    mixed = (mixed + number + 0x9E3779B97F4A7C15) & _UINT64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _UINT64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _UINT64
    return mixed ^ (mixed >> 31)
