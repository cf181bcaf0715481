"""Passes over a whole data set in which every row counts once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

import ndfast
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data.batches import BatchDataset, EvaluationBatches, load
from ndfast.train.models import AnyNetwork, Output

Module = TypeVar("Module", bound=nn.Module)

IGNORED = -100


def evaluation_batches(
    accelerator: Accelerator,
    dataset: BatchDataset,
    config: TrainConfig,
    data_seed: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of a data set, in batches of as many rows in every process.

    A data seed augments the images as in epoch 0.

    Yields:
        Images [N, C, ...] and labels [N] on the device; rows that only fill a batch up are labelled
        `IGNORED`.
    """
    batches = _batches(accelerator, dataset, data_seed)
    loaded = load(dataset, batches, config.workers, accelerator.device)
    for step, (images, labels) in enumerate(loaded):
        counted = torch.arange(len(labels)) < batches.counted(step)
        labels = torch.where(counted, labels, IGNORED)
        yield (
            move(images, accelerator.device, config),
            labels.to(accelerator.device, non_blocking=True),
        )


def count_batches(accelerator: Accelerator, dataset: BatchDataset) -> int:
    """How many batches `evaluation_batches` gives."""
    return len(_batches(accelerator, dataset, None))


def _batches(
    accelerator: Accelerator, dataset: BatchDataset, data_seed: int | None
) -> EvaluationBatches:
    rank, processes = accelerator.process_index, accelerator.num_processes
    size = batch_size(accelerator.device)
    return EvaluationBatches(len(dataset), size, rank, processes, data_seed)


def batch_size(device: torch.device) -> int:
    """Of a forward pass alone: on a CPU the maps of more images leave its caches."""
    return 64 if device.type == "cpu" else 256


def move(images: Tensor, device: torch.device, config: TrainConfig) -> Tensor:
    """The images on the device, in the layout of the config; see `is_channels_last`."""
    layout = torch.preserve_format
    if images.dim() == 4 and is_channels_last(config, device):
        layout = torch.channels_last
    return images.to(device, non_blocking=True, memory_format=layout)


def is_channels_last(config: TrainConfig, device: torch.device) -> bool:
    """Whether images and weights are in NHWC: where the config says nothing, on a CPU.

    There ResNet-56 trains 1.3 times as fast in it as in NCHW, in float32 and in bfloat16.
    """
    return device.type == "cpu" if config.channels_last is None else config.channels_last


def place(module: Module, device: torch.device, config: TrainConfig) -> Module:
    """The module on the device, in the layout of the config; see `is_channels_last`."""
    module = module.to(device)
    if is_channels_last(config, device):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def share_buffers(model: nn.Module) -> None:
    """Gives every process the main one's buffers; every process must call this.

    Each has statistics of normalisation of its own rows, and the main one's are saved. No average
    is taken: DistributedDataParallel goes on with the main one's in every step, too.
    """
    broadcast([*model.buffers()])


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: Callable[[Tensor], dict[str, Tensor]],
    dataset: BatchDataset,
    config: TrainConfig,
    class_means: Tensor | None,
) -> dict[str, float]:
    """The means over a data set; without class means [K, D] no cosine is among them.

    The model is in evaluation mode and gives "features" [N, D] and "logits" [N, K] of images.

    Returns:
        "accuracy" (0 to 1), "cross_entropy" (nats), "norm" (of the features, L2), and "cosine" of
        the features to their label's class mean.
    """
    sums = torch.zeros(5, dtype=torch.float64, device=accelerator.device)
    for images, labels in evaluation_batches(accelerator, dataset, config):
        found = model(images)
        features, logits = found["features"].float(), found["logits"].float()
        counted = labels != IGNORED
        safe = labels.clamp(min=0)
        rows = [
            torch.ones_like(labels, dtype=torch.float32),
            (logits.argmax(dim=1) == labels).float(),
            F.cross_entropy(logits, safe, reduction="none"),
            features.norm(dim=1),
            torch.zeros_like(features[:, 0])
            if class_means is None
            else F.cosine_similarity(features, class_means[safe]),
        ]
        sums += torch.where(counted, torch.stack(rows), 0.0).double().sum(dim=1)
    total, *found_sums = accelerator.reduce(sums, "sum").tolist()
    names = ("accuracy", "cross_entropy", "norm", "cosine")
    metrics = {name: found / total for name, found in zip(names, found_sums, strict=True)}
    if class_means is None:
        del metrics["cosine"]
    return metrics


@torch.no_grad()
def take_class_means(
    accelerator: Accelerator,
    network: AnyNetwork,
    dataset: BatchDataset,
    num_classes: int,
    config: TrainConfig,
    data_seed: int | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """The class means of a network over a data set, in one pass shared by all processes.

    The network is in evaluation mode. A data seed augments the images, as KD++'s authors do.

    Returns:
        The means [K, D] and the rows of each class, int64 [K].

    Raises:
        ValueError: a class has no row, its mean is not finite, or a row did not count once.
    """
    means = ndfast.ClassMeans(num_classes, network.dim, ignore_index=IGNORED)
    for images, labels in evaluation_batches(accelerator, dataset, config, data_seed):
        with accelerator.autocast():
            output: Output = network(images)
        means.update(output.features, labels)
        after_batch()
    means.all_reduce()
    return means.compute(expected_count=len(dataset)), means.counts
