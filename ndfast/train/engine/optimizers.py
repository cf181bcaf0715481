"""The optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from ndfast.train.config.detection_config import AnyConfig


def build_optimizer(model: nn.Module, config: AnyConfig) -> Optimizer:
    """The optimiser of a config; LAMB is pytorch_optimizer's, for large batches."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = config.weight_decay
    if config.decay_norms:
        groups = [{"params": parameters, "weight_decay": decay}]
    else:
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
    nesterov = config.nesterov and config.momentum > 0
    if config.optimizer == "sgd":
        return SGD(groups, config.lr, config.momentum, nesterov=nesterov)
    if config.optimizer == "adamw":
        return AdamW(groups, config.lr)
    import pytorch_optimizer

    # The decay within the trust ratio, as the paper has it (arXiv 1904.00962, algorithm 2).
    return pytorch_optimizer.Lamb(groups, config.lr, weight_decouple=False)


def step_at(optimizer: Optimizer, rate: float) -> None:
    """Takes a step at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def learning_rate(config: AnyConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: a warm-up from 0, then steps down or a cosine to 0.

    A function of the step alone, so that a resumed run needs nothing more.
    """
    warmup = config.lr_warmup * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
        return config.lr * config.lr_gamma**passed
    total = config.epochs * steps_per_epoch
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
