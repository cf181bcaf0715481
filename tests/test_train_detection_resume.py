"""`ndfast detect` that was interrupted goes on; its log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate.state import AcceleratorState
from rich.console import Console
from small_detection import small_config
from small_runs import events

from ndfast.train.detection.run import run
from ndfast.train.detection.trainer import DetectionTrainer
from ndfast.train.errors import ConfigError

METHODS = ("ce", "kd++")
STEPS = 3  # of an epoch: 18 images in batches of 6


def quiet(out: Path, **fields: Any) -> dict[str, Any]:
    config = small_config(
        out=str(out), batch_size=6, epochs=3, methods=METHODS, log_every=2, **fields
    )
    return run(config, Console(quiet=True))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    quiet(out)
    return out


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The step of this number, over all trainings, does not come to pass."""
    step, taken = DetectionTrainer.step, []

    def counted(self: DetectionTrainer, *batches: Any) -> Any:
        taken.append(None)
        if len(taken) == number:
            raise KeyboardInterrupt
        return step(self, *batches)

    monkeypatch.setattr(DetectionTrainer, "step", counted)


# In the teacher's first epoch, before any checkpoint; in its third; in those of the students.
@pytest.mark.parametrize("number", [2, 8, 14, 3 * 3 * STEPS])
def test_an_interrupted_run_ends_as_an_unbroken_one(
    number: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, number)
        with pytest.raises(KeyboardInterrupt):
            quiet(tmp_path)
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(ConfigError, match="holds a run; expected --resume to go on with it"):
        quiet(tmp_path)
    with pytest.raises(ConfigError, match=r"lr: got 0.5, but the run in .* was started with 0.003"):
        quiet(tmp_path, resume=True, lr=0.5)
    resumed = quiet(tmp_path, resume=True, workers=1)
    expected = json.loads((unbroken / "results.json").read_text())
    for found in ("teacher", "students"):
        assert resumed[found] == expected[found]
    for folder in (Path("teacher"), *(Path("runs") / method for method in METHODS)):
        ends = [events(out / folder, "end") for out in (tmp_path, unbroken)]
        assert ends[0][0]["sha256"] == ends[1][0]["sha256"]
        epochs = [events(out / folder, "epoch") for out in (tmp_path, unbroken)]
        assert [each["train"] for each in epochs[0]] == [each["train"] for each in epochs[1]]


def test_a_damaged_checkpoint_is_passed_over(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            quiet(tmp_path)
    newest = max((tmp_path / "teacher" / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{2 * STEPS:010d}"
    weights = newest / "model.safetensors"
    broken = bytearray(weights.read_bytes())
    broken[-1] ^= 1
    weights.write_bytes(broken)
    resumed = quiet(tmp_path, resume=True)
    assert events(tmp_path / "teacher", "resume")[0]["step"] == STEPS
    assert resumed["teacher"] == json.loads((unbroken / "results.json").read_text())["teacher"]


def test_a_training_that_has_lost_its_log(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "runs" / "ce" / "log.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"^out: .*log\.jsonl tells of no epoch, and the training"
    ):
        quiet(tmp_path / "run", resume=True)


def test_a_log_of_before_steps_were_skipped(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    log = tmp_path / "run" / "runs" / "ce" / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:
        record.pop("skipped", None)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ConfigError, match=r"^out: .*log\.jsonl tells of no skipped steps, and the"):
        quiet(tmp_path / "run", resume=True)


def test_a_run_goes_on_in_its_own_precision_alone(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quiet_under(environment: str, **fields: Any) -> dict[str, Any]:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
        AcceleratorState._reset_state()
        return quiet(tmp_path, **fields)

    with monkeypatch.context() as patch:
        interrupt_at(patch, 14)
        with pytest.raises(KeyboardInterrupt):
            quiet_under("bf16")
    ends = [events(out / "teacher", "end")[0]["sha256"] for out in (unbroken, tmp_path)]
    assert ends[0] != ends[1]
    refused = r"got 'fp32', but the run in .* was started with 'bf16'"
    with pytest.raises(ConfigError, match=f"^precision: {refused}"):
        quiet_under("no", resume=True)
    results = quiet_under("no", resume=True, precision="bf16")
    assert results["config"]["precision"] == results["environment"]["precision"] == "bf16"


def test_the_log_tells_of_every_epoch(unbroken: Path) -> None:
    folder = unbroken / "runs" / "kd++"
    assert [each["step"] for each in events(folder, "epoch")] == [STEPS, 2 * STEPS, 3 * STEPS]
    steps = events(folder, "step")
    assert [each["step"] for each in steps] == [2, 4, 6, 8]
    for each in steps:
        assert each["loss"] == pytest.approx(sum(each["losses"].values()))
        assert each["images_per_s"] > 0
    assert set(steps[0]["losses"]) >= {"classification", "regression", "kd", "nd"}
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == [f"step-{epoch * STEPS:010d}" for epoch in (2, 3)]
    assert [each["name"] for each in events(folder, "checkpoint")][-2:] == checkpoints
