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
from ndfast.train import files
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.data.batches import Batch, draw_views, load
from ndfast.train.distill.evaluation import batch_size, move
from ndfast.train.distill.kept_outputs import METRICS, identity, logits_and_norms
from ndfast.train.distill.teacher import prepare_teacher
from ndfast.train.errors import ConfigError
from ndfast.train.machine.processes import resolve_precision, session


def make_teacher_outputs(
    config: TrainConfig, out: Path, dtype: torch.dtype, per_epoch: bool, console: Console
) -> None:
    """Keeps a teacher's outputs for its students, its class means, and what it reaches in tests.

    Any number of processes share the pieces, and those that are there already are not made again.
    Per epoch the views of each of ``config.epochs`` are kept, for one data seed, of data whose
    views are finitely many too; of other data it is so in any case.

    Raises:
        ConfigError: the teacher does not fit, ``out`` holds outputs of something else or cannot be
            written, or its disk is too small.
    """
    config = replace(config, precision=resolve_precision(config.precision))
    with session(config, console) as (accelerator, bars):
        data = build_data(config.data, config.data_dir, config.image_size)
        num_views = None if per_epoch else data.train.num_views
        data_seed = config.augmentation_seed if num_views is None else None
        teacher, metadata = prepare_teacher(accelerator, config, data, bars)
        try:
            outputs = TeacherOutputs.create(
                out,
                rows=len(data.train),
                num_views=num_views or config.epochs,
                num_classes=data.num_classes,
                dtype=dtype,
                **identity(config, data, metadata["teacher_sha256"], data_seed),
            )
            if accelerator.is_main_process:
                assert teacher.class_means is not None
                ndfast.save_class_means(out / files.CLASS_MEANS, teacher.class_means, **metadata)
                files.write_json(out / METRICS, teacher.metrics)
            pieces = outputs.missing(accelerator.process_index, accelerator.num_processes)
            bars.note(f"{out}: {outputs.num_bytes / 1e9:.2f} GB, {len(pieces)} pieces to make")
            batches = _PieceBatches(pieces, batch_size(accelerator.device), data_seed)
            loaded = load(data.train, batches, config.workers, accelerator.device)
            with bars.run("teacher outputs", len(batches)) as bar, torch.inference_mode():
                for piece in pieces:
                    parts, start = [], perf_counter()
                    for _ in range(batches.count(piece)):
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
    console.print(f"Written to {out}")


class _PieceBatches(Sampler[Batch]):
    """The rows of the pieces in batches, each in its piece's view, or in its view of that epoch."""

    def __init__(self, pieces: list[Piece], size: int, data_seed: int | None) -> None:
        self._pieces, self._size, self._data_seed = pieces, size, data_seed

    def __len__(self) -> int:
        return sum(map(self.count, self._pieces))

    def count(self, piece: Piece) -> int:
        return len(self._starts(piece))

    def __iter__(self) -> Iterator[Batch]:
        for piece in self._pieces:
            for start in self._starts(piece):
                rows = [*range(start, min(start + self._size, piece.stop))]
                views = [piece.view] * len(rows)
                if self._data_seed is not None:  # the piece's view is an epoch
                    views = draw_views(self._data_seed, piece.view, rows)
                yield Batch(rows, views, piece.view)

    def _starts(self, piece: Piece) -> range:
        return range(piece.start, piece.stop, self._size)
