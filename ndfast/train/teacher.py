"""The frozen teacher, and class means that are this teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

import ndfast
from ndfast.train.config import TrainConfig
from ndfast.train.data import Data
from ndfast.train.errors import ConfigError
from ndfast.train.evaluation import evaluate, place, take_class_means
from ndfast.train.models import AnyNetwork, Output, build_model
from ndfast.train.models.weights import load_weights, weights_digest

PRETRAINED = "pretrained"
FROM_TEACHER, FROM_CLASSIFIER = MEANS_WORDS = "teacher", "classifier"


class Teacher(NamedTuple):
    """A frozen network, its class means [K, D] if they are needed, and what it reaches in tests."""

    network: AnyNetwork
    class_means: Tensor | None
    metrics: dict[str, float]

    def __call__(self, images: Tensor) -> Output:
        """What it gives for images [N, C, ...], without a gradient."""
        with torch.no_grad():
            return self.network(images)


def load_teacher(config: TrainConfig, data: Data, device: torch.device) -> AnyNetwork:
    """The teacher's network from its weights, in evaluation mode and frozen.

    Raises:
        ConfigError: there is no such network, or the weights do not fit it.
    """
    pretrained = config.teacher_weights == PRETRAINED
    network = build_model(config.teacher, data.num_classes, data.image_shape, pretrained)
    if not pretrained:
        load_weights(network, Path(config.teacher_weights or ""))
    return freeze(network, config, device)


def freeze(network: AnyNetwork, config: TrainConfig, device: torch.device) -> AnyNetwork:
    """The network on the device as a teacher is used: in evaluation mode, without gradients."""
    return place(network.eval().requires_grad_(False), device, config)


def find_class_means(
    accelerator: Accelerator,
    config: TrainConfig,
    data: Data,
    network: AnyNetwork,
) -> tuple[Tensor, dict[str, Any]]:
    """Takes, reads or builds the class means that the config asks for.

    Returns:
        The means [K, D] on the device, and what `ndfast.save_class_means` keeps beside them.

    Raises:
        ConfigError: the file is broken, or of another teacher, data set, width or class count.
    """
    about: dict[str, Any] = describe_class_means(config.teacher, network, data)
    if config.class_means == FROM_TEACHER:
        try:
            means, counts = take_class_means(
                accelerator, network, data.train, data.num_classes, config
            )
        except ValueError as error:
            raise ConfigError(f"class_means: {error}") from error
        about["counts"] = counts.cpu()
    elif config.class_means == FROM_CLASSIFIER:
        means = network.classifier.weight.detach().clone()
        about["source"] = FROM_CLASSIFIER
    else:
        means = read_class_means(Path(config.class_means), about, network, data.num_classes)
    return means.to(accelerator.device, torch.float32), about


def describe_class_means(name: str, network: AnyNetwork, data: Data) -> dict[str, str]:
    """What a file of class means says of the teacher and the data that they are of."""
    return {"teacher": name, "teacher_sha256": weights_digest(network), "data": data.name}


def read_class_means(
    path: Path, about: dict[str, Any], network: AnyNetwork, num_classes: int
) -> Tensor:
    """Class means from a file that must be of this teacher; KD++'s JSON does not say whose it is.

    Args:
        path: what `ndfast.save_class_means` or KD++'s authors wrote.
        about: "teacher_sha256" and "data" that the file must have, if it has any; one that is not
            known yet is left out.
        network: the teacher.
        num_classes: K.

    Raises:
        ConfigError: it cannot be read or does not fit; one sentence.
    """
    try:
        means = ndfast.load_class_means(path)
        metadata = ndfast.load_class_means_metadata(path)
    except OSError as error:
        raise ConfigError(f"class_means: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"class_means: {error}") from error
    if tuple(means.shape) != (num_classes, network.dim):
        raise ConfigError(
            f"class_means: {path} is {list(means.shape)}; teacher and data take "
            f"[{num_classes}, {network.dim}]"
        )
    for name, what in (("teacher_sha256", "teacher"), ("data", "data set")):
        if name in metadata and metadata[name] != about.get(name, metadata[name]):
            raise ConfigError(
                f"class_means: {path} is of another {what} ({metadata.get('teacher', 'unnamed')} "
                f"on {metadata.get('data', 'unnamed data')}); it takes this one's"
            )
    return means


def prepare_teacher(
    accelerator: Accelerator,
    config: TrainConfig,
    data: Data,
    with_means: bool = True,
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher with its metrics and, ``with_means``, which take a pass over the training set,
    its class means and what is to be kept beside them.
    """
    network = load_teacher(config, data, accelerator.device)
    means: Tensor | None = None
    about: dict[str, Any] = {}
    if with_means:
        means, about = find_class_means(accelerator, config, data, network)

    def features_and_logits(images: Tensor) -> dict[str, Tensor]:
        with accelerator.autocast():
            output: Output = network(images)
        return {"features": output.features, "logits": output.logits}

    metrics = evaluate(accelerator, features_and_logits, data.test, config, means)
    if config.compile:
        network.compile()
    return Teacher(network, means, metrics), about
