"""One training and one evaluation, on Hugging Face Accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset

from ndfast.train.config import TrainConfig

LossOf = Callable[[nn.Module, Tensor, Tensor], Tensor]
METRICS = ("accuracy", "cross_entropy", "norm", "cosine")
EVALUATION_BATCH = 512


def training_loader(dataset: Dataset, batch_size: int, seed: int) -> DataLoader:
    """Batches in an order that only ``seed`` decides, whatever else draws random numbers."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        drop_last=True,  # batch normalisation cannot train on a last batch of one
        generator=torch.Generator().manual_seed(seed),
    )


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """KD++'s optimiser: SGD with Nesterov momentum and weight decay."""
    return SGD(
        model.parameters(),
        config.lr,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )


def train_step(accelerator: Accelerator, optimizer: Optimizer, loss: Tensor) -> Tensor:
    """Steps along the gradient of ``loss``; returns it detached."""
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Dataset,
    loss_of: LossOf,
    config: TrainConfig,
    seed: int,
) -> Iterator[list[float]]:
    """Trains ``model``, which Accelerate has prepared, in place.

    Args:
        accelerator: the device and the processes.
        model: what to train.
        dataset: images and labels.
        loss_of: the loss of (model, images, labels).
        config: epochs, batch size and optimiser.
        seed: of the order of the images.

    Yields:
        After each epoch the losses of its steps, each the mean over the processes.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    loader = training_loader(dataset, config.batch_size, seed)
    optimizer = build_optimizer(model, config)
    # Accelerate steps the schedule once for each process, so it is planned for one.
    schedule = CosineAnnealingLR(optimizer, T_max=config.epochs * len(loader))
    loader, optimizer, schedule = accelerator.prepare(loader, optimizer, schedule)
    for epoch in range(1, config.epochs + 1):
        model.train()
        losses = []
        for images, target in loader:
            losses.append(train_step(accelerator, optimizer, loss_of(model, images, target)))
            schedule.step()
        epoch_losses = accelerator.reduce(torch.stack(losses), "mean").tolist()
        if not all(map(math.isfinite, epoch_losses)):
            raise FloatingPointError(
                f"the training loss is NaN or infinite in epoch {epoch} with seed {seed}; a lower "
                "learning rate may help"
            )
        yield epoch_losses


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, dataset: Dataset, class_means: Tensor
) -> dict[str, float]:
    """The means of `METRICS` over a data set, all its rows counted once.

    Args:
        accelerator: the device and the processes.
        model: returns features [N, D] and logits [N, K].
        dataset: images and labels.
        class_means: [K, D], which the cosine is taken to.

    Returns:
        The accuracy (0 to 1), the cross entropy (nats), the features' L2 norm, and the cosine of
        the features to their label's class mean.
    """
    model.eval()
    loader = accelerator.prepare(DataLoader(dataset, EVALUATION_BATCH))
    rows = []
    for images, target in loader:
        features, logits = model(images)
        metrics = (
            (logits.argmax(dim=1) == target).float(),
            F.cross_entropy(logits, target, reduction="none"),
            features.norm(dim=1),
            F.cosine_similarity(features, class_means[target]),
        )
        rows.append(accelerator.gather_for_metrics(torch.stack(metrics, dim=1)))
    return dict(zip(METRICS, torch.cat(rows).double().mean(dim=0).tolist(), strict=True))
