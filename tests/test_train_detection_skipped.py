"""`ndfast detect` leaves out steps of NaN, and ends after too many of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from rich.console import Console
from small_detection import small_config
from small_runs import events
from torch import Tensor

from ndfast.cli import main
from ndfast.train.detection.run import run
from ndfast.train.detection.trainer import DetectionTrainer

FLAGS = ["--images", "18", "--dim", "16", "--rows", "24", "--teacher", "tiny", "--batch-size", "6"]

State = list[Tensor]


def poison(
    monkeypatch: pytest.MonkeyPatch, by: str, which: Callable[[DetectionTrainer], bool]
) -> tuple[State, State]:
    """Spoils some steps by an image or a gradient of NaN; the state before and after those."""
    before: State = []
    after: State = []
    step = DetectionTrainer.step

    def state(trainer: DetectionTrainer) -> State:
        return [value.clone() for value in trainer.model.state_dict().values()]

    def poisoned(trainer: DetectionTrainer, batches: Any) -> None:
        if not which(trainer):
            step(trainer, batches)
            return
        before.extend(state(trainer))
        if by == "image":
            [(images, targets)] = batches
            step(trainer, [([torch.full_like(image, float("nan")) for image in images], targets)])
        else:
            weight = next(trainer.model.parameters())
            handle = weight.register_hook(lambda gradient: gradient * float("nan"))
            step(trainer, batches)
            handle.remove()
        after.extend(state(trainer))

    monkeypatch.setattr(DetectionTrainer, "step", poisoned)
    return before, after


@pytest.mark.parametrize("by", ["image", "gradient"])
def test_a_step_of_nan_is_skipped_and_counted(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three steps an epoch: the student's second and fifth.
    states = poison(
        monkeypatch, by, lambda trainer: bool(trainer.teacher) and trainer.position.step in (1, 4)
    )
    console = Console(record=True, width=100, file=io.StringIO())
    config = small_config(
        out=str(tmp_path), methods=("kd++",), epochs=2, batch_size=6, max_skipped=1 + 1, log_every=1
    )
    results = run(config, console)
    assert results["skipped"] == {"teacher": 0, "kd++": 2}
    assert "Steps skipped: kd++ 2." in " ".join(console.export_text().split())
    assert len(states[0]) == len(states[1]) > 0
    assert all(map(torch.equal, *states))  # parameters, and statistics of normalisation
    folder = tmp_path / "runs" / "kd++"
    assert [(each["step"], each["in_a_row"]) for each in events(folder, "skip")] == [(2, 1), (5, 1)]
    assert [each["skipped"] for each in events(folder, "epoch")] == [1, 2]
    steps = [each["loss"] for each in events(folder, "step")]
    assert len(steps) == 6
    if by == "image":
        assert [loss is None for loss in steps] == [False, True, False, False, True, False]
        means = [each["train"]["loss"] for each in events(folder, "epoch")]
        assert means == pytest.approx([(steps[0] + steps[2]) / 2, (steps[3] + steps[5]) / 2])
    assert results["students"]["kd++"]["losses"]["nd"] > 0


def test_too_many_skipped_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    poison(monkeypatch, "image", lambda trainer: trainer.position.step in (0, 2, 3, 4))
    flags = ["--epochs", "2", "--max-skipped", "3", "--out", str(tmp_path)]
    assert main(["detect", *FLAGS, *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "NaN or infinite 3 times in a row, up to step 5 in epoch 2" in error
    assert [each["in_a_row"] for each in events(tmp_path / "teacher", "skip")] == [1, 1, 2, 3]


def test_an_epoch_that_is_skipped_whole_has_no_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "image", lambda trainer: bool(trainer.teacher))
    config = small_config(out=str(tmp_path), methods=("kd",), batch_size=6)
    results = run(config, Console(quiet=True))
    assert results["skipped"] == {"teacher": 0, "kd": 3}
    assert results["students"]["kd"]["losses"] == {}
    assert events(tmp_path / "runs" / "kd", "epoch")[0]["train"] == {}
