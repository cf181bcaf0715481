"""The command `ndfast teacher-outputs`: a teacher runs once over every view that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from torch.utils.data import Sampler

import ndfast
from ndfast import TeacherOutputs
from ndfast.files import reason_of
from ndfast.teacher_outputs_pieces import Piece
from ndfast.train import folder as files
from ndfast.train.config import TrainConfig
from ndfast.train.data import Data, build_data
from ndfast.train.data.batches import Batch, draw_views, load
from ndfast.train.errors import ConfigError
from ndfast.train.evaluation import BATCH, move
from ndfast.train.kept_outputs import METRICS, identity, logits_and_norms
from ndfast.train.models.weights import weights_digest
from ndfast.train.processes import build_accelerator, resolve_precision, torch_settings
from ndfast.train.progress import Bars
from ndfast.train.run import leave_together
from ndfast.train.teacher import prepare_teacher


def make_teacher_outputs(
    config: TrainConfig, out: Path, dtype: torch.dtype, console: Console
) -> None:
    """Keeps a teacher's outputs for its students, its class means, and what it reaches in tests.

    Any number of processes share the pieces, and those that are there already are not made again.

    Args:
        config: the teacher, its weights and class means, and the data; of data whose views are not
            finitely many, the data seed, and the epochs to be made.
        out: the folder.
        dtype: of the logits.
        console: where progress goes.

    Raises:
        ConfigError: the teacher does not fit, ``out`` holds outputs of something else or cannot be
            written, or its disk is too small.
    """
    config = replace(config, precision=resolve_precision(config.precision))
    accelerator = build_accelerator(config)
    data = build_data(config.data, config.data_dir, config.image_size)
    with torch_settings(config), Bars(console, accelerator.is_main_process) as bars:
        teacher, about = prepare_teacher(accelerator, config, data, bars)
        try:
            outputs = TeacherOutputs.create(
                out,
                rows=len(data.train),
                num_views=data.train.num_views or config.epochs,
                num_classes=data.num_classes,
                dtype=dtype,
                **identity(config, data, weights_digest(teacher.network)),
            )
            if accelerator.is_main_process:
                assert teacher.class_means is not None
                ndfast.save_class_means(out / files.CLASS_MEANS, teacher.class_means, **about)
                files.write_json(out / METRICS, teacher.metrics)
            pieces = outputs.missing(accelerator.process_index, accelerator.num_processes)
            bars.note(f"{out}: {outputs.num_bytes / 1e9:.2f} GB, {len(pieces)} pieces to make")
            batches = _PieceBatches(pieces, data, config)
            loaded = load(data.train, batches, config.workers, accelerator.device)
            with bars.run("teacher outputs", len(batches)) as bar, torch.inference_mode():
                for piece in pieces:
                    parts, start = [], perf_counter()
                    for _ in _starts(piece):
                        images, *_ = next(loaded)
                        with accelerator.autocast():
                            output = teacher(move(images, accelerator.device, config))
                        parts.append([part.cpu() for part in logits_and_norms(output)])
                        bar.advance()
                    outputs.write(piece, *map(torch.cat, zip(*parts, strict=True)))
                    seconds = perf_counter() - start
                    bar.show(images_per_s=(piece.stop - piece.start) / seconds)
        except OSError as error:
            raise ConfigError(f"out: cannot write to {str(out)!r}: {reason_of(error)}") from error
        except ValueError as error:
            raise ConfigError(f"out: {error}") from error
    leave_together(accelerator)
    console.print(f"Written to {out}")


def _starts(piece: Piece) -> range:
    return range(piece.start, piece.stop, BATCH)


class _PieceBatches(Sampler[Batch]):
    """The rows of the pieces, each in its view."""

    def __init__(self, pieces: list[Piece], data: Data, config: TrainConfig) -> None:
        self._pieces, self._has_epochs = pieces, data.train.num_views is None
        self._data_seed = config.seed if config.data_seed is None else config.data_seed

    def __len__(self) -> int:
        return sum(len(_starts(piece)) for piece in self._pieces)

    def __iter__(self) -> Iterator[Batch]:
        for piece in self._pieces:
            for start in _starts(piece):
                rows = [*range(start, min(start + BATCH, piece.stop))]
                if self._has_epochs:  # the view is one
                    yield Batch(rows, draw_views(self._data_seed, piece.view, rows), piece.view)
                else:
                    yield Batch(rows, [piece.view] * len(rows))
