"""The frozen teacher, and class means that are this teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

import ndfast
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import Data
from ndfast.train.distill.evaluation import (
    IGNORED,
    count_batches,
    evaluate,
    evaluation_batches,
    place,
    take_class_means,
)
from ndfast.train.errors import ConfigError
from ndfast.train.machine.progress import Bars
from ndfast.train.models import AnyNetwork, Output, build_model
from ndfast.train.models.folding import fold_batch_norms
from ndfast.train.models.weights import load_weights, weights_digest

PRETRAINED = "pretrained"
_LEAST_COSINE, _ABOVE_CHANCE = 0.5, 1.5
FROM_TEACHER, AUGMENTED, FROM_CLASSIFIER = MEANS_KEYWORDS = "teacher", "augmented", "classifier"


class Teacher(NamedTuple):
    """A frozen network, its class means [K, D] if they are needed, and what it reaches in tests."""

    network: AnyNetwork
    class_means: Tensor | None
    metrics: dict[str, float]

    def __call__(self, images: Tensor) -> Output:
        """What it gives for images [N, C, ...], without a gradient."""
        with torch.no_grad():
            return self.network(images)


def load_teacher(config: TrainConfig, data: Data, device: torch.device) -> tuple[AnyNetwork, str]:
    """The teacher's network from its weights, see `freeze`, and their `weights_digest`.

    Raises:
        ConfigError: there is no such network, or the weights do not fit it.
    """
    pretrained = config.teacher_weights == PRETRAINED
    network = build_model(config.teacher, data.num_classes, data.image_shape, pretrained)
    if not pretrained:
        load_weights(network, Path(config.teacher_weights or ""))
    digest = weights_digest(network)  # before they are folded
    return freeze(network, config, device), digest


def freeze(network: AnyNetwork, config: TrainConfig, device: torch.device) -> AnyNetwork:
    """The network on the device as a teacher is used: in evaluation mode, without gradients, with
    batch normalisation folded into the convolutions.
    """
    network = network.eval().requires_grad_(False)
    fold_batch_norms(network)
    return place(network, device, config)


def find_class_means(
    accelerator: Accelerator,
    config: TrainConfig,
    data: Data,
    network: AnyNetwork,
    digest: str,
    bars: Bars,
) -> tuple[Tensor, dict[str, Any]]:
    """Takes, reads or builds the class means that the config asks for.

    ``network`` and ``digest`` are what `load_teacher` gives.

    Returns:
        The means [K, D] on the device, and what `ndfast.save_class_means` keeps beside them.

    Raises:
        ConfigError: the file is broken, or of another teacher, data set, width or class count;
            one that does not say whose it is, if the teacher's features do.
    """
    metadata: dict[str, Any] = {
        "teacher": config.teacher,
        "teacher_sha256": digest,
        "data": data.name,
    }
    means: Tensor
    if config.class_means in (FROM_TEACHER, AUGMENTED):
        augmented = config.class_means == AUGMENTED and data.train.num_views != 1
        total = count_batches(accelerator, data.train)
        try:
            with bars.run("class means", total) as bar:
                means, counts = take_class_means(
                    accelerator,
                    network,
                    data.train,
                    data.num_classes,
                    config,
                    data_seed=0 if augmented else None,  # not the run's: they are the teacher's
                    after_batch=bar.advance,
                )
        except ValueError as error:
            raise ConfigError(f"class_means: {error}") from error
        metadata["images"] = "augmented" if augmented else "as they are"
        metadata["counts"] = counts.cpu()
    elif config.class_means == FROM_CLASSIFIER:
        means = network.classifier.weight.detach().clone()
        metadata["source"] = FROM_CLASSIFIER
    else:
        path = Path(config.class_means)
        shape = (data.num_classes, network.dim)
        means, stored_metadata = read_class_means(path, metadata, shape)
        if "teacher_sha256" in stored_metadata:
            metadata = stored_metadata | metadata
        else:  # not to be told of this teacher from here on either
            metadata = stored_metadata | {"source": str(path)}
            _check_own(accelerator, config, data, network, means)
    return means.to(accelerator.device, torch.float32), metadata


def read_class_means(
    path: Path, metadata: dict[str, Any], shape: tuple[int, int]
) -> tuple[Tensor, dict[str, Any]]:
    """Class means from a file that must be of this teacher; KD++'s JSON does not say whose it is.

    Args:
        path: what `ndfast.save_class_means` or KD++'s authors wrote.
        metadata: "teacher_sha256" and "data" that the file must have, if it has any; one that is
            not known yet is left out.
        shape: (K, D), of data and teacher.

    Returns:
        The means [K, D], and what the file says of the same as ``metadata``, and of its "images".

    Raises:
        ConfigError: it cannot be read or does not fit; one sentence.
    """
    try:
        means = ndfast.load_class_means(path)
        in_file = ndfast.load_class_means_metadata(path)
    except OSError as error:
        raise ConfigError(f"class_means: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"class_means: {error}") from error
    if tuple(means.shape) != shape:
        raise ConfigError(
            f"class_means: {path} is {list(means.shape)}; teacher and data take {list(shape)}"
        )
    for name, what in (("teacher_sha256", "teacher"), ("data", "data set")):
        if name in in_file and in_file[name] != metadata.get(name, in_file[name]):
            raise ConfigError(
                f"class_means: {path} is of another {what} ({in_file.get('teacher', 'unnamed')} "
                f"on {in_file.get('data', 'unnamed data')}); expected this one's"
            )
    stored_metadata = {name: in_file[name] for name in (*metadata, "images") if name in in_file}
    return means, stored_metadata


@torch.no_grad()
def _check_own(
    accelerator: Accelerator, config: TrainConfig, data: Data, network: AnyNetwork, means: Tensor
) -> None:
    """Raises ConfigError if the teacher's features on the test set say that means [K, D] from a
    file are not its own.

    Both have a part that all classes share, which after a ReLU makes any two vectors similar; it is
    left out. On digits and MNIST-1D the cosine of what remains is then above 0.98 for a teacher's
    own means, over augmented images too, above 0.8 for those of another epoch, and below 0.15 for
    those of another teacher or of classes in another order.
    """
    K, D = means.shape
    sums = torch.zeros(K, D + 2, dtype=torch.float64, device=accelerator.device)
    for images, labels in evaluation_batches(accelerator, data.test, config):
        with accelerator.autocast():
            output: Output = network(images)
        right = output.logits.argmax(dim=1) == labels
        rows = [output.features, right[:, None], torch.ones_like(right)[:, None]]
        counted = (labels != IGNORED).double()[:, None]
        sums.index_add_(0, labels.clamp(min=0), counted * torch.cat([r.double() for r in rows], 1))
    sums = accelerator.reduce(sums, "sum")
    accuracy = float(sums[:, D].sum() / sums[:, D + 1].sum())
    if accuracy < _ABOVE_CHANCE / K:
        return  # such features know nothing of the classes
    seen = sums[:, D + 1] > 0
    theirs = means.to(sums)[seen]
    own = sums[seen, :D] / sums[seen, D + 1 :]
    check_alike(config.class_means, own, theirs)


def check_alike(path: str, own: Tensor, theirs: Tensor) -> None:
    """Raises ConfigError if the means [K, D] of a file do not point where the teacher's own do."""
    cosines = F.cosine_similarity(own - own.mean(dim=0), theirs - theirs.mean(dim=0))
    if cosines.mean() < _LEAST_COSINE:
        raise ConfigError(
            f"class_means: {path} does not say whose it is, and is not of this teacher, or has its "
            "classes in another order: its cosine to the teacher's own, both less what all classes "
            f"share, is {float(cosines.mean()):.2f}; expected {_LEAST_COSINE} or more"
        )


def prepare_teacher(
    accelerator: Accelerator,
    config: TrainConfig,
    data: Data,
    bars: Bars,
    with_means: bool = True,
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher with its metrics and, ``with_means``, which take a pass over the training set,
    its class means and what is to be kept beside them.
    """
    network, digest = load_teacher(config, data, accelerator.device)
    means: Tensor | None = None
    metadata: dict[str, Any] = {}
    if with_means:
        means, metadata = find_class_means(accelerator, config, data, network, digest, bars)

    def features_and_logits(images: Tensor) -> dict[str, Tensor]:
        with accelerator.autocast():
            output: Output = network(images)
        return {"features": output.features, "logits": output.logits}

    metrics = evaluate(accelerator, features_and_logits, data.test, config, means)
    if config.compile:
        network.compile()
    return Teacher(network, means, metrics), metadata
