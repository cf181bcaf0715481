"""What a run tells while it goes on: the log, TensorBoard's files, the bars."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from rich.console import Console

from ndfast.train.errors import CheckpointError, ConfigError
from ndfast.train.machine.progress import Bars
from ndfast.train.runs.records import RunLog, read_log


def open_log(folder: Path, resumed_step: int | None = None, tensorboard: bool = False) -> RunLog:
    return RunLog(folder, tensorboard, resumed_step, is_main_process=True)


def tell_step(log: RunLog, step: int, loss: float) -> None:
    losses = {"ce": loss / 2, "nd": loss / 4}
    log.write("step", step=step, epoch=1, loss=loss, losses=losses, lr=0.1, images_per_s=100.0)


def tell_epoch(log: RunLog, step: int, accuracy: float, **values: Any) -> None:
    told = {"train": {"loss": 1.5}, "test": {"accuracy": accuracy}, "ema": None, "parts_ms": {}}
    log.write("epoch", epoch=1, step=step, **told | values, images_per_s=90.0, skipped=0)


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    with open_log(tmp_path) as log:
        log.write("start", step=0, epoch=1, environment={"gpus": []})
        (record,) = read_log(tmp_path / "log.jsonl")
        tell_step(log, 1, 2.0)
    assert before <= datetime.fromisoformat(record.pop("time")) <= datetime.now(timezone.utc)
    assert record == {"event": "start", "step": 0, "epoch": 1, "environment": {"gpus": []}}
    assert [record["event"] for record in read_log(tmp_path / "log.jsonl")] == ["start", "step"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    with open_log(tmp_path) as log:
        log.write("step", step=1, loss=nan, losses={"ce": -infinity, "nd": 0.5}, of=[infinity, 1])
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["loss"] is None
    assert record["losses"] == {"ce": None, "nd": 0.5}
    assert record["of"] == [None, 1]


def test_a_torn_last_line_is_passed_over_and_another_is_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": "\xc3')
    assert read_log(path) == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"log\.jsonl: line 2 is broken"):
        read_log(path)


def test_replayed_steps_stand_once(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in range(1, 6):
            tell_step(log, step, 10.0 + step)
            if step % 2 == 0:
                log.write("checkpoint", step=step, name=f"step-{step}")
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event": "st')  # killed while it wrote
    kept = path.read_bytes().splitlines()[:6]
    with open_log(tmp_path, resumed_step=4) as log:
        assert path.read_bytes().splitlines() == kept
        tell_step(log, 5, 20.0)
    records = read_log(path)
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert losses == [11.0, 12.0, 13.0, 14.0, 20.0]
    assert [record["name"] for record in records if "name" in record] == ["step-2", "step-4"]


@pytest.mark.parametrize("told", [True, False])  # a kill may come between
def test_what_came_after_the_checkpoint_goes(told: bool, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (1, 2):
            tell_step(log, step, 1.0)
        if told:
            log.write("checkpoint", step=2, name="step-2")
            tell_epoch(log, 2, 0.5)
            tell_step(log, 3, 1.0)
    with open_log(tmp_path, resumed_step=2):
        pass
    kept = [(record["event"], record["step"]) for record in read_log(tmp_path / "log.jsonl")]
    assert kept == [("step", 1), ("step", 2), ("checkpoint", 2)][: 2 + told]


def test_a_run_that_starts_anew_has_a_new_log(tmp_path: Path) -> None:
    for _ in range(2):
        with open_log(tmp_path) as log:
            tell_step(log, 1, 1.0)
    assert len(read_log(tmp_path / "log.jsonl")) == 1


def test_a_log_that_was_removed_is_no_hindrance(tmp_path: Path) -> None:
    with open_log(tmp_path, resumed_step=3) as log:
        tell_step(log, 4, 1.0)
    assert len(read_log(tmp_path / "log.jsonl")) == 1


def test_the_log_is_whole_whenever_the_rewriting_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            tell_step(log, step, 1.0)
    before = (tmp_path / "log.jsonl").read_bytes()

    def killed(*paths: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_log(tmp_path, resumed_step=1)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=True, resumed_step=None, is_main_process=False) as log:
        tell_step(log, 1, 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    sentence = r"log\.jsonl cannot be written: the disk is full: No space left"
    with open_log(tmp_path) as log:
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        with pytest.raises(CheckpointError, match=sentence):
            tell_step(log, 1, 1.0)


def test_tensorboard_shows_what_the_log_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra [train]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_log(tmp_path, tensorboard=True) as log:
        log.write("start", step=0, epoch=1, environment={})
        for step in (1, 2, 3):
            tell_step(log, step, 4.0 * step)
            tell_epoch(log, step, 0.125 * step)
    with open_log(tmp_path, resumed_step=2, tensorboard=True) as log:
        log.write("resume", step=2, epoch=1, environment={})
        tell_step(log, 3, float("nan"))
        tell_epoch(log, 3, 0.75, ema={"accuracy": 0.875}, parts_ms={"nd": 0.5})
        tell_step(log, 4, 16.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert found.pop("train/lr")[0] == (1, pytest.approx(0.1))
    assert found.pop("train/images_per_s")[-1] == (4, 100.0)
    assert found == {
        "train/loss": [(1, 4.0), (2, 8.0), (4, 16.0)],  # without the NaN of step 3
        "train/ce": [(1, 2.0), (2, 4.0), (4, 8.0)],
        "train/nd": [(1, 1.0), (2, 2.0), (4, 4.0)],
        "train_epoch/loss": [(1, 1.5), (2, 1.5), (3, 1.5)],
        "test/accuracy": [(1, 0.125), (2, 0.25), (3, 0.75)],  # step 3's first is purged
        "ema/accuracy": [(3, 0.875)],
        "parts_ms/nd": [(3, 0.5)],
    }


def test_tensorboard_missing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard: .* missing; expected `pip install"):
        open_log(tmp_path, tensorboard=True)


SHOWN = "loss 0.5000, ce 0.250, nd 0.125, training 75.0%, accuracy 87.50%, 1,234 images/s"


def lines_of_bars(enabled: bool = True, width: int = 120, **options: Any) -> list[str]:
    """What a run of three steps, of which one was done before, shows."""
    file = StringIO()
    with (
        Bars(Console(file=file, width=width, **options), enabled) as bars,
        bars.run("kd++ [red]", 3, completed=1) as bar,
    ):
        bar.advance()
        bar.advance(loss=0.5, ce=0.25, nd=0.125, training=0.75, images_per_s=1234.4)
        bar.show(accuracy=0.875)
        bars.note("a [broken] checkpoint")
        bars.refresh()  # which it does ten times a second
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def test_no_terminal_gets_a_line_for_each_run() -> None:
    note, line = lines_of_bars()
    assert note == "a [broken] checkpoint"
    title, _, shown = re.split(r": (\d:\d\d:\d\d), ", line)
    assert (title, shown) == ("kd++ [red]", SHOWN)


def test_a_terminal_gets_bars() -> None:
    shown = "\n".join(lines_of_bars(force_terminal=True, color_system=None))
    assert "━" in shown
    assert "1/3" in shown
    assert "kd++ [red]" in shown
    narrow = lines_of_bars(width=len(SHOWN), force_terminal=True, color_system=None)
    assert any(line.endswith(SHOWN) for line in narrow)  # below the bar there is room for it


def test_the_other_processes_show_nothing() -> None:
    assert lines_of_bars(enabled=False) == []


def test_a_run_that_fails_is_not_told_as_done() -> None:
    file = StringIO()
    with (
        pytest.raises(FloatingPointError),
        Bars(Console(file=file), True) as bars,
        bars.run("kd++", 3),
    ):
        raise FloatingPointError
    assert file.getvalue().strip() == ""
