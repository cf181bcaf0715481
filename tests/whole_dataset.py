"""All rows of a dataset of `ndfast.train.data` at once."""

from __future__ import annotations

from torch import Tensor

from ndfast.train.data.batches import Batch, BatchDataset, draw_views


def all_rows(dataset: BatchDataset, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """The images and labels, augmented as in epoch 0 of a data seed."""
    rows = list(range(len(dataset)))
    return dataset.__getitems__(Batch(rows, None if seed is None else draw_views(seed, 0, rows)))
