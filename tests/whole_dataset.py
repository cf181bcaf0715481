"""All rows of a dataset of `ndfast.train.data` at once."""

from __future__ import annotations

from torch import Tensor

from ndfast.train.data.batches import Batch, BatchDataset


def all_rows(dataset: BatchDataset, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """The images and labels, augmented by ``seed``."""
    return dataset.__getitems__(Batch(list(range(len(dataset))), seed))
