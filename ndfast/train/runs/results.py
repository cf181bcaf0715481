"""What a run's results.json holds."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from ndfast.train.data import Data
from ndfast.train.engine.trainer import Trainer
from ndfast.train.engine.verdicts import summarise_checks
from ndfast.train.models import AnyNetwork, build_model


def summarise(
    trainer: Trainer,
    backend: str | None,
    environment: dict[str, Any],
    digest: str,
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    """The results of a run that has ended; ``digest`` is the SHA-256 of its weights."""
    config, data, teacher = trainer.config, trainer.data, trainer.teacher
    epochs = [record for record in records if record["event"] == "epoch"]
    if epochs and epochs[-1]["step"] == trainer.position.step:
        test, average = epochs[-1]["test"], epochs[-1]["ema"]
    else:  # it ended amid an epoch
        test, average = trainer.evaluate()
    speeds = [speed for record in epochs if (speed := record["images_per_s"]) is not None]
    return {
        "config": asdict(config),
        "environment": environment,
        "backend": backend,
        "data": {
            "name": data.name,
            "train": len(data.train),
            "test": len(data.test),
            "num_classes": data.num_classes,
        },
        "teacher": None
        if teacher is None
        else _describe(config.teacher, _as_built(config.teacher, data)) | teacher.metrics,
        "student": _describe(config.model, trainer.distiller.network),
        "loss_check": summarise_checks(
            [record for record in records if record["event"] == "check"]
        ),
        "epochs": epochs,
        "test": test,
        "ema": average,
        "steps": trainer.position.step,
        "all_steps": trainer.all_steps,
        "skipped": trainer.position.skipped,
        "parts_ms": trainer.stopwatch.medians_ms(),
        "images_per_s": median(speeds) if speeds else None,
        "sha256": digest,
    }


def _as_built(name: str, data: Data) -> AnyNetwork:
    """The network without its weights: a teacher's norms are folded, and no parameters any more."""
    with torch.device("meta"):
        return build_model(name, data.num_classes, data.image_shape)


def _describe(name: str, network: AnyNetwork) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"name": name, "parameters": parameters, "dim": network.dim}
