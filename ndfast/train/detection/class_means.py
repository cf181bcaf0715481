"""The class means of a teacher's box features."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

import ndfast
from ndfast.train.data.batches import Batch
from ndfast.train.detection.coco import CocoDataset
from ndfast.train.detection.detector import Detector
from ndfast.train.detection.loop import move
from ndfast.train.errors import ConfigError


@torch.no_grad()
def take_class_means(
    accelerator: Accelerator, teacher: Detector, dataset: CocoDataset, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The mean box feature of each class and of background, over the rows that a teacher samples.

    KD++'s authors take them over the proposals of the student that trains meanwhile; here they are
    the teacher's own, so that they depend on nothing but the teacher, the data and the generator
    of random numbers. The processes share the images.

    Args:
        accelerator: the device and the processes.
        teacher: in evaluation mode.
        dataset: images and objects; every class has a box.
        batch_size: images at a time.

    Returns:
        The means [K + 1, D], background last, as in KD++'s files; and each one's rows.

    Raises:
        ConfigError: there is no background, or a mean is not finite.
    """
    means = ndfast.ClassMeans(teacher.num_classes + 1, teacher.dim)
    own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    for start in range(0, len(own), batch_size):
        batch = dataset.__getitems__(Batch([*own[start : start + batch_size]], None))
        images, targets = move(*batch, accelerator.device)
        maps = teacher.encode(images)
        rows, _ = teacher.sample(maps, targets)
        means.update(teacher.read(maps, rows.boxes).features, rows.labels)
    means.all_reduce()
    try:
        return means.compute(), means.counts
    except ValueError as error:
        raise ConfigError(f"class_means: {error}") from error
