"""Batches of images with their objects, on the device; and a data set shared out in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast.train.data.batches import Batch
from ndfast.train.detection.coco import CocoDataset
from ndfast.train.detection.detector import Target


def move(
    images: list[Tensor], targets: list[Target], device: torch.device
) -> tuple[list[Tensor], list[Target]]:
    """A batch on the device."""
    return [image.to(device) for image in images], [
        Target(*(part.to(device) for part in target)) for target in targets
    ]


def evaluation_batches(
    accelerator: Accelerator, dataset: CocoDataset, rows: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[Tensor], list[Target]]]:
    """This process's share of the rows of a data set, in whole batches, not augmented.

    The batches are the same in however many processes: what a detector finds in an image depends
    on the others of its batch, by the size that all are brought to or by rounding. So a process
    may have a batch fewer than another, or none.

    Yields:
        The rows of a batch, and its images and objects on the device.
    """
    first, step = accelerator.process_index * batch_size, accelerator.num_processes * batch_size
    for start in range(first, len(rows), step):
        batch = [*rows[start : start + batch_size]]
        yield batch, *move(*dataset.__getitems__(Batch(batch, None)), accelerator.device)
