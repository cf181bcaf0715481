"""The command `ndfast class-means --teacher ...`: a teacher's class means, in one pass."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

import ndfast
from ndfast.files import reason_of
from ndfast.train.config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.errors import ConfigError
from ndfast.train.evaluation import count_batches, take_class_means
from ndfast.train.folder import check_writable
from ndfast.train.processes import build_accelerator, torch_settings
from ndfast.train.progress import Bars
from ndfast.train.run import leave_together
from ndfast.train.teacher import describe_class_means, load_teacher


def make_class_means(config: TrainConfig, out: Path, augmented: bool, console: Console) -> None:
    """Streams a teacher over its training set and writes its class means.

    Any number of processes share the set. The file says whose means they are: the teacher's name,
    the SHA-256 of its weights, and the data.

    Args:
        config: the teacher, its weights and the data.
        out: the file; its suffix tells the format.
        augmented: over augmented images, from seed 0.
        console: where progress goes.

    Raises:
        ConfigError: the teacher does not fit, a class has no image, or ``out`` cannot be written.
    """
    if out.suffix.lower() not in (".safetensors", ".npz"):
        raise ConfigError(f"out: got {str(out)!r}; it takes a .safetensors or .npz file")
    check_writable(out.parent, out)
    accelerator = build_accelerator(config)
    data = build_data(config.data, config.data_dir, config.image_size)
    network = load_teacher(config, data, accelerator.device)
    total = count_batches(accelerator, data.train)
    with (
        torch_settings(config),
        Bars(console, accelerator.is_main_process) as bars,
        bars.run("class means", total) as bar,
    ):
        try:
            means, counts = take_class_means(
                accelerator,
                network,
                data.train,
                data.num_classes,
                config,
                seed=0 if augmented else None,
                after_batch=bar.advance,
            )
        except ValueError as error:
            raise ConfigError(f"data: {error}") from error
    if accelerator.is_main_process:
        about = describe_class_means(config.teacher, network, data)
        about["images"] = "augmented" if augmented else "as they are"
        try:
            ndfast.save_class_means(out, means, counts=counts, **about)
        except OSError as error:
            raise ConfigError(f"out: cannot write to {str(out)!r}: {reason_of(error)}") from error
        K, D = means.shape
        console.print(f"Written to {out}: {K} classes, {D} features, {int(counts.sum())} images")
    leave_together(accelerator)
