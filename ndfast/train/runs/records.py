"""What happens in a run, as it happens: a line of JSON each in `log.jsonl`, and TensorBoard.

Every line has "event" and "time" (UTC, ISO 8601), and besides:

- "start", "resume": "step", "epoch", "environment"
- "step": "step" (of the optimiser, so far), "epoch" (from 1), "loss", "losses" (its parts,
  unweighted; of a detector weighted), "lr", "images_per_s"
- "check", of the ND loss: "step", "epoch", and what `LossCheck.answer` of
  `ndfast.train.engine.loss_check` gives
- "skip", a batch whose loss or gradient was NaN or Inf: "step", "epoch", "in_a_row"
- "epoch": "epoch", "step", "train" (means over its steps), "test", "ema" ("test" of the averaged
  weights, or null), "parts_ms" (the median step's), "images_per_s" (null where it only had to be
  evaluated, after a resume), "skipped" (so far); of a detector without "test" and "ema"
- "checkpoint": "step", "name"
- "end": "step", "sha256" (of the weights)

NaN and Inf are null: JSON has none.

TensorBoard's files are written by torch's own writer. Accelerate's tracker wraps the same class; it
is asked for as its Accelerator is built, before a run's folder is opened, and would spare no line.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndfast.files import reason_of, write_whole
from ndfast.train import files
from ndfast.train.errors import CheckpointError, ConfigError
from ndfast.train.runs import folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes the log of a run, line by line.

    Args:
        out: the folder of the run.
        tensorboard: write TensorBoard's files too.
        resumed_step: what a resumed run starts from; what came after that checkpoint it does again,
            and those lines go. None: the log starts anew.
        is_main_process: the other processes write nothing.

    Raises:
        ConfigError: TensorBoard is asked for and missing.
    """

    def __init__(
        self, out: Path, tensorboard: bool, resumed_step: int | None, is_main_process: bool
    ) -> None:
        self._path = out / folder.LOG
        self._is_main_process = is_main_process
        self._writer: SummaryWriter | None = None
        if not is_main_process:
            return
        last = 0 if resumed_step is None else resumed_step
        if tensorboard:
            self._writer = _build_writer(out / folder.TENSORBOARD, last)
        kept = []
        if resumed_step is not None and self._path.exists():
            kept = _until_checkpoint(read_log(self._path), last)
        write_whole(self._path, b"".join(map(_line, kept)))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, event: str, **values: Any) -> None:
        """Adds a line, and TensorBoard's scalars of steps and epochs.

        Raises:
            CheckpointError: it cannot be written, the disk being full for one.
        """
        if not self._is_main_process:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = files.without_nan({"event": event, "time": now, **values})
        try:
            # Opened for each line: nothing is left in a buffer that a crash would lose.
            with open(self._path, "ab") as file:
                file.write(_line(record))
        except OSError as error:
            raise CheckpointError(
                f"{self._path} cannot be written: {reason_of(error)}; the checkpoints are kept"
            ) from error
        if self._writer is not None:
            for name, value in _scalars(record).items():
                self._writer.add_scalar(name, value, record["step"])
            if event != "step":
                self._writer.flush()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for a last one that a crash cut off.

    Raises:
        ConfigError: another line is broken.
        OSError: the file cannot be read.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is broken: {error}") from error
    return records


def _until_checkpoint(records: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The lines of what a checkpoint holds; a kill may have come before the line that names it."""
    kept = [record for record in records if record["step"] <= step]
    named = [
        number
        for number, record in enumerate(kept, start=1)
        if record["event"] == "checkpoint" and record["step"] == step
    ]
    return kept[: named[-1]] if named else kept


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _build_writer(folder: Path, last_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ConfigError(
            "tensorboard: the package is missing; expected `pip install tensorboard`"
        ) from error
    # What was written from purge_step on is passed over by TensorBoard.
    return SummaryWriter(str(folder), purge_step=last_step + 1)


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard is told of a line, by name."""
    if record["event"] == "step":
        own = {name: record[name] for name in ("loss", "lr", "images_per_s")}
        groups = {"train": own | record["losses"]}
    elif record["event"] == "epoch":
        groups = {name: record.get(name) or {} for name in ("test", "ema", "parts_ms")}
        groups["train_epoch"] = record["train"]
    else:
        return {}
    return {
        f"{group}/{name}": value
        for group, values in groups.items()
        for name, value in values.items()
        if value is not None
    }
