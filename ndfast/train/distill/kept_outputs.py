"""The teacher's outputs where they are kept: read for a batch, in place of its network's pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ndfast import TeacherOutputs
from ndfast.train import files
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import Data
from ndfast.train.data.batches import Batch, BatchDataset
from ndfast.train.distill.teacher import (
    AUGMENTED,
    FROM_CLASSIFIER,
    FROM_TEACHER,
    MEANS_KEYWORDS,
    Teacher,
    check_alike,
    load_teacher,
    prepare_teacher,
    read_class_means,
)
from ndfast.train.errors import ConfigError
from ndfast.train.machine.processes import resolve_precision
from ndfast.train.machine.progress import Bars
from ndfast.train.models import Output, build_model

DATA_SEED = "data_seed"  # in the metadata of outputs whose views are epochs
METRICS = "teacher.json"  # beside the outputs, as are the class means
_SOURCES = {
    FROM_TEACHER: ("images", "as they are"),
    AUGMENTED: ("images", "augmented"),
    FROM_CLASSIFIER: ("source", FROM_CLASSIFIER),
}


class KeptDataset:
    """A data set whose batches bring the teacher's logits and norms for their very views.

    Args:
        dataset: images and labels.
        outputs: of all its rows.
    """

    def __init__(self, dataset: BatchDataset, outputs: TeacherOutputs) -> None:
        self.dataset, self.outputs = dataset, outputs
        self._is_per_epoch = DATA_SEED in outputs.metadata
        self.num_views, self.preprocessing = dataset.num_views, dataset.preprocessing

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Images, labels, and of a batch with views logits [n, K] and norms [n]."""
        images, labels = self.dataset.__getitems__(batch)
        if batch.views is None:
            return images, labels
        views = [batch.epoch] * len(labels)
        if not self._is_per_epoch:
            assert self.num_views is not None
            views = [view % self.num_views for view in batch.views]
        return images, labels, *self.outputs.read(batch.indices, views)


def logits_and_norms(output: Output) -> tuple[Tensor, Tensor]:
    """What is kept of a teacher's output: logits [N, K], and ‖t‖ float32 [N]."""
    return output.logits, torch.linalg.vector_norm(output.features, dim=1, dtype=torch.float32)


def as_output(logits: Tensor, norms: Tensor) -> Output:
    """What is kept, in the form that a distiller takes: the ND loss takes norms for features."""
    return Output(norms, logits, ())


def identity(
    config: TrainConfig, data: Data, digest: str | None, data_seed: int | None
) -> dict[str, Any]:
    """What the outputs depend on.

    ``digest`` is of the teacher's weights, None if not known; ``data_seed`` of outputs whose views
    are epochs, None of others.
    """
    found: dict[str, Any] = {
        "teacher": config.teacher,
        "data": data.name,
        "preprocessing": data.train.preprocessing,
        "precision": resolve_precision(config.precision),
    }
    if data_seed is not None:
        found[DATA_SEED] = data_seed
    return found if digest is None else {**found, "teacher_sha256": digest}


def find_teacher(
    accelerator: Accelerator,
    config: TrainConfig,
    data: Data,
    bars: Bars,
    with_means: bool = True,
) -> tuple[Teacher, dict[str, Any], Data]:
    """The teacher of a run, which runs in its steps or whose outputs are kept.

    Returns:
        As `prepare_teacher`, and the data, which may bring the outputs.
    """
    if config.teacher_outputs is not None:
        return open_outputs(accelerator, config, data, bars)
    return *prepare_teacher(accelerator, config, data, bars, with_means), data


def check_serves_all_seeds(folder: str) -> None:
    """Raises ConfigError if outputs are of one data seed; what is no outputs is told later."""
    try:
        metadata = TeacherOutputs(folder).metadata
    except (OSError, ValueError):
        return
    if DATA_SEED in metadata:
        raise ConfigError(
            f"data_seed: got none for several seeds; expected {metadata[DATA_SEED]}, which "
            f"{folder} was made with"
        )


def open_outputs(
    accelerator: Accelerator, config: TrainConfig, data: Data, bars: Bars
) -> tuple[Teacher, dict[str, Any], Data]:
    """The teacher of a run that reads its outputs; every process must call this.

    Returns:
        The teacher, whose network has no weights and is not run; what is to be kept beside its
        class means; and the data, whose training batches bring the outputs.

    Raises:
        ConfigError: the outputs are not there to the end, damaged, or of another teacher, data set,
            preprocessing, precision or data seed.
    """
    folder = Path(config.teacher_outputs or "")
    digest = None
    if config.teacher_weights is not None:  # given besides: it must be the same
        _, digest = load_teacher(config, data, torch.device("cpu"))
    try:
        outputs = TeacherOutputs(folder)
        data_seed: int | None = None
        if data.train.num_views is None or DATA_SEED in outputs.metadata:
            data_seed = config.augmentation_seed
        outputs.check(**identity(config, data, digest, data_seed))
        sizes: dict[str, int | None] = {"rows": len(data.train), "num_classes": data.num_classes}
        if data_seed is None:
            sizes["num_views"] = data.train.num_views
        elif config.epochs > outputs.num_views:
            raise ValueError(f"epochs: got {config.epochs}; {folder} holds {outputs.num_views}")
        for name, expected in sizes.items():
            if getattr(outputs, name) != expected:
                raise ValueError(
                    f"{name}: {folder} holds {getattr(outputs, name)}; the data have {expected}"
                )
        metrics = files.read_json(folder / METRICS)
    except OSError as error:
        raise ConfigError(
            f"teacher_outputs: cannot read {error.filename or folder}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"teacher_outputs: {error}") from error
    _verify(accelerator, config, outputs, bars)
    with torch.device("meta"):
        network = build_model(config.teacher, data.num_classes, data.image_shape)
    metadata = identity(config, data, outputs.metadata["teacher_sha256"], data_seed)
    means, stored_metadata = _class_means(config, metadata, (data.num_classes, network.dim))
    kept = KeptDataset(data.train, outputs)
    return (
        Teacher(network, means.to(accelerator.device, torch.float32), metrics),
        stored_metadata,
        data._replace(train=kept),
    )


def _class_means(
    config: TrainConfig, metadata: dict[str, Any], shape: tuple[int, int]
) -> tuple[Tensor, dict[str, Any]]:
    is_file = config.class_means not in MEANS_KEYWORDS
    kept = Path(config.teacher_outputs or "") / files.CLASS_MEANS
    path = Path(config.class_means) if is_file else kept
    named = {**metadata, "images": "", "source": ""}
    means, stored_metadata = read_class_means(path, named, shape)
    if is_file and "teacher_sha256" not in stored_metadata:
        own, _ = read_class_means(kept, named, shape)
        check_alike(config.class_means, own, means)
    if not is_file:
        name, value = _SOURCES[config.class_means]
        if stored_metadata.get(name) != value:
            made = stored_metadata.get("source") or f"of images {stored_metadata.get('images')}"
            raise ConfigError(
                f"class_means: got {config.class_means}; the class means in {kept.parent} are "
                f"{made}; expected that, or a file"
            )
    return means, stored_metadata


def _verify(
    accelerator: Accelerator, config: TrainConfig, outputs: TeacherOutputs, bars: Bars
) -> None:
    """Compares all pieces with their hashes; each process reads a share, and all fail together."""
    epochs = range(config.epochs if DATA_SEED in outputs.metadata else outputs.num_views)
    error: ValueError | None = None
    share = epochs[accelerator.process_index :: accelerator.num_processes]
    with bars.run("teacher outputs", len(share)) as bar:
        for view in share:
            try:
                outputs.verify([view])
            except ValueError as found:
                error = found
                break
            bar.advance()
    failed = torch.tensor([error is not None], device=accelerator.device)
    if accelerator.gather(failed).any():
        raise ConfigError(f"teacher_outputs: {error or 'another process found them damaged'}")
