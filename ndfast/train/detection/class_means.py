"""The class means of a teacher's box features."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

import ndfast
from ndfast.train.detection.batches import evaluation_batches
from ndfast.train.detection.coco import CocoDataset
from ndfast.train.detection.detector import Detector, Target
from ndfast.train.errors import ConfigError


@torch.no_grad()
def take_class_means(
    accelerator: Accelerator, teacher: Detector, dataset: CocoDataset, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The mean box feature of each class and of background, over the rows that a teacher samples.

    KD++'s authors take them over the proposals of the student that trains meanwhile; here they are
    the teacher's own, so that they depend on nothing but the teacher, the data and the generator
    of random numbers. The processes share the images.

    A class with boxes of which chance samples none has the mean over its boxes themselves. One
    without a box has no rows in training either: its mean is 0, which no loss meets.

    Returns:
        The means [K + 1, D], background last, as in KD++'s files; and each one's rows, 0 for a
        class without a box.

    Raises:
        ConfigError: there is no background, or a mean is not finite.
    """
    means = ndfast.ClassMeans(teacher.num_classes + 1, teacher.dim)
    for _, images, targets in evaluation_batches(
        accelerator, dataset, range(len(dataset)), batch_size
    ):
        maps = teacher.encode(images)
        rows, _ = teacher.sample(maps, targets)
        means.update(teacher.read(maps, rows.boxes).features, rows.labels)
    means.all_reduce()
    without_box = dataset.box_counts == 0
    missed = (means.counts[:-1].cpu() == 0) & ~without_box
    having = [image for image, target in enumerate(dataset.targets) if missed[target.labels].any()]
    missed = missed.to(accelerator.device)
    for _, images, targets in evaluation_batches(accelerator, dataset, having, batch_size):
        own = [Target(*(part[missed[target.labels]] for part in target)) for target in targets]
        features = teacher.read(teacher.encode(images), [target.boxes for target in own]).features
        means.update(features, torch.cat([target.labels for target in own]))
    if accelerator.is_main_process:
        absent = without_box.nonzero().flatten()
        means.update(torch.zeros(len(absent), teacher.dim), absent)
    means.all_reduce()
    try:
        found, counts = means.compute(), means.counts
    except ValueError as error:
        raise ConfigError(f"class_means: {error}") from error
    counts[:-1][without_box.to(counts.device)] = 0
    return found, counts
