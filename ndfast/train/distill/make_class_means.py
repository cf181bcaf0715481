"""The command `ndfast class-means --teacher ...`: a teacher's class means, in one pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

import ndfast
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.distill.teacher import AUGMENTED, FROM_TEACHER, find_class_means, load_teacher
from ndfast.train.errors import ConfigError
from ndfast.train.files import check_writable, writing_to
from ndfast.train.machine.processes import session


def make_class_means(config: TrainConfig, out: Path, augmented: bool, console: Console) -> None:
    """Streams a teacher over its training set and writes its class means.

    Any number of processes share the set. The file says whose means they are: the teacher's name,
    the SHA-256 of its weights, and the data; its suffix tells the format.

    Raises:
        ConfigError: the teacher does not fit, a class has no image, or ``out`` cannot be written.
    """
    if out.suffix.lower() not in (".safetensors", ".npz"):
        raise ConfigError(f"out: got {str(out)!r}; expected a .safetensors or .npz file")
    check_writable(out.parent, out)
    config = replace(config, class_means=AUGMENTED if augmented else FROM_TEACHER)
    with session(config, console) as (accelerator, bars):
        data = build_data(config.data, config.data_dir, config.image_size)
        network, digest = load_teacher(config, data, accelerator.device)
        means, metadata = find_class_means(accelerator, config, data, network, digest, bars)
    if accelerator.is_main_process:
        with writing_to(out):
            ndfast.save_class_means(out, means, **metadata)
        K, D = means.shape
        console.print(f"Written to {out}: {K} classes, {D} features, {len(data.train)} images")
