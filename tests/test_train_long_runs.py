"""Long runs survive: kills, broken checkpoints, batches of NaN, a lost process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import events, quiet_run, run_in_two_processes

from ndfast.cli import main
from ndfast.train.engine.trainer import Trainer
from ndfast.train.errors import ConfigError

TESTS = Path(__file__).parent
STEPS = 11  # of an epoch


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a teacher of one epoch."""
    out = tmp_path_factory.mktemp("teacher")
    quiet_run(out, model="convnet32", method="ce", epochs=1)
    return str(out / "model.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "kd++", "ema": 0.9},
        {"method": "reviewkd++", "learnable_class_means": True},
        {"method": "kd++", "mixup": 0.4, "cutmix": 1.0, "accumulate": 2, "batch_size": 16},
        {"method": "dist++", "precision": "bf16", "optimizer": "lamb", "lr": 0.01},
        {"method": "dkd", "optimizer": "adamw", "lr": 0.002, "probe": True, "nd_warmup": 2},
    ],
    ids=lambda fields: fields["method"],
)
def test_a_resumed_run_ends_bit_for_bit(
    fields: dict[str, Any], teacher: str, tmp_path: Path
) -> None:
    fields = {**fields, "teacher_weights": teacher}
    unbroken = quiet_run(tmp_path / "unbroken", **fields)
    for stop in (4, STEPS) if "ema" in fields else (4,):  # amid an epoch, and at its end
        broken = tmp_path / str(stop)
        first = quiet_run(broken, **fields, max_steps=stop)
        assert first["steps"] == stop
        assert first["sha256"] != unbroken["sha256"]
        torch.manual_seed(stop)  # what else draws random numbers between the two does not matter
        resumed = quiet_run(broken, **fields, resume=True)
        assert resumed["sha256"] == unbroken["sha256"]
        assert resumed["test"] == unbroken["test"]
        assert resumed["ema"] == unbroken["ema"]
        for ours, theirs in zip(resumed["epochs"], unbroken["epochs"], strict=True):
            assert ours["train"] == pytest.approx(theirs["train"], rel=1e-12)
            assert ours["test"] == theirs["test"]
        assert [record["step"] for record in events(broken, "resume")] == [stop]


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_evaluation_that_fails_loses_no_step(
    epoch: int, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"teacher_weights": teacher, "ema": 0.9}
    unbroken = quiet_run(tmp_path / "unbroken", **fields)
    broken = tmp_path / "broken"

    evaluate = Trainer.evaluate

    def evaluate_until(trainer: Trainer) -> Any:
        if trainer.position.step == STEPS * epoch:
            raise ConfigError("data_dir: a test image cannot be read")
        return evaluate(trainer)

    with monkeypatch.context() as failing:
        failing.setattr(Trainer, "evaluate", evaluate_until)
        with pytest.raises(ConfigError, match="a test image"):
            quiet_run(broken, **fields)
    resumed = quiet_run(broken, **fields, resume=True)
    assert resumed["sha256"] == unbroken["sha256"]
    assert [record["step"] for record in events(broken, "resume")] == [STEPS * epoch]
    assert [record["epoch"] for record in resumed["epochs"]] == [1, 2]
    for ours, theirs in zip(resumed["epochs"], unbroken["epochs"], strict=True):
        assert (ours["images_per_s"] is None) == (ours["epoch"] == epoch)
        assert ours["train"] == pytest.approx(theirs["train"], rel=1e-12)
        assert (ours["test"], ours["ema"]) == (theirs["test"], theirs["ema"])


def test_a_run_that_is_over_is_only_read(teacher: str, tmp_path: Path) -> None:
    first = quiet_run(tmp_path, teacher_weights=teacher, max_steps=2)
    (tmp_path / "model.safetensors").unlink()
    again = quiet_run(tmp_path, teacher_weights=teacher, max_steps=2, resume=True)
    assert again == json.loads(json.dumps(first))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.long
def test_killed_at_any_moment(teacher: str, tmp_path: Path, seed: int) -> None:
    """NDFAST_TEST_KILLS=200 is the long form."""
    kills = os.environ.get("NDFAST_TEST_KILLS", "6")
    command = [sys.executable, TESTS / "kill_runs.py", teacher, tmp_path, kills, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(run["kills"] for run in found["broken"]) == int(kills)
    for run in found["broken"]:
        assert run["sha256"] == found["sha256"], found
        assert run["lost"] == 0, found


@pytest.fixture(scope="module")
def checkpoints(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of nine steps with checkpoints of steps 6 and 9, and the hash of what it comes to."""
    folder = tmp_path_factory.mktemp("checkpoints")
    fields = {"teacher_weights": teacher, "checkpoint_every": 3, "epochs": 1}
    quiet_run(folder / "broken", **fields, max_steps=9)
    return folder / "broken", quiet_run(folder / "unbroken", **fields)["sha256"]


@pytest.mark.parametrize(
    "damage",
    [
        "flipped",
        "truncated",
        "missing",
        "manifest",
        "empty manifest",
        "empty manifest alone",
        "shorter manifest",
    ],
)
def test_a_broken_checkpoint_is_passed_over(
    damage: str, checkpoints: tuple[Path, str], teacher: str, tmp_path: Path
) -> None:
    begun, sha256 = checkpoints
    broken = shutil.copytree(begun, tmp_path / "broken")
    newest = sorted((broken / "checkpoints").iterdir())[-1]
    assert newest.name == "step-0000000009"
    path = newest / ("sha256.json" if "manifest" in damage else "optimizer.bin")
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-7])
    elif damage.startswith("empty manifest"):
        path.write_text("{}")
        if damage.endswith("alone"):
            for other in {*newest.iterdir()} - {path}:
                other.unlink()
    elif damage == "shorter manifest":
        _, *others = json.loads(content).items()
        path.write_text(json.dumps(dict(others)))
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    fields = {"teacher_weights": teacher, "checkpoint_every": 3, "epochs": 1}
    assert quiet_run(broken, **fields, resume=True)["sha256"] == sha256
    assert [record["step"] for record in events(broken, "resume")] == [6]


def test_what_the_system_leaves_in_a_checkpoint_is_no_damage(teacher: str, tmp_path: Path) -> None:
    quiet_run(tmp_path, teacher_weights=teacher, max_steps=3)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    (checkpoint / ".nfs0001").touch()
    quiet_run(tmp_path, teacher_weights=teacher, max_steps=4, resume=True)
    assert [record["step"] for record in events(tmp_path, "resume")] == [3]


def test_checkpoints_are_a_ring(teacher: str, tmp_path: Path) -> None:
    fields = {"checkpoint_every": 2, "keep_checkpoints": 3, "max_steps": 9}
    quiet_run(tmp_path, teacher_weights=teacher, **fields)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-0000000006", "step-0000000008", "step-0000000009"]


def test_a_batch_of_nan_is_skipped_and_counted(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = _poison_batches(monkeypatch, {4, 13})
    results = quiet_run(tmp_path, teacher_weights=teacher)
    assert results["skipped"] == 2
    assert [(record["step"], record["in_a_row"]) for record in events(tmp_path, "skip")] == [
        (5, 1),
        (14, 1),
    ]
    assert all(torch.equal(before, after) for before, after in zip(*states, strict=True))
    assert results["test"]["cross_entropy"] > 0  # no statistics of NaN are left


def test_too_many_skipped_in_a_row_end_the_run(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _poison_batches(monkeypatch, {2, 5, 6, 7, 8})
    command = ["train", "--out", str(tmp_path), "--teacher-weights", teacher, "--max-skipped", "3"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "NaN or infinite 3 times in a row, up to step 8" in error
    assert [record["in_a_row"] for record in events(tmp_path, "skip")] == [1, 1, 2, 3]


def _poison_batches(
    monkeypatch: pytest.MonkeyPatch, steps: set[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Makes the images of some steps NaN; the model's tensors before and after those, in order."""
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    step = Trainer.step

    def state(trainer: Trainer) -> list[torch.Tensor]:
        return [value.clone() for value in trainer.model.state_dict().values()]

    def poisoned(trainer: Trainer, batches: list) -> None:
        if trainer.position.step not in steps:
            step(trainer, batches)
            return
        before.extend(state(trainer))
        images, labels = batches[0]
        step(trainer, [(torch.full_like(images, float("nan")), labels), *batches[1:]])
        after.extend(state(trainer))

    monkeypatch.setattr(Trainer, "step", poisoned)
    return before, after


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_of_nan_is_skipped_like_a_loss_of_nan(
    clip_norm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of the steps are finite."""
    states: list[list[torch.Tensor]] = []
    step = Trainer.step

    def poisoned(trainer: Trainer, batches: list) -> None:
        handle = None
        if trainer.position.step in (3, 7):
            weight = next(trainer.model.parameters())
            handle = weight.register_hook(lambda gradient: gradient * float("nan"))
        states.append([value.clone() for value in trainer.model.state_dict().values()])
        step(trainer, batches)
        if handle is not None:
            handle.remove()

    monkeypatch.setattr(Trainer, "step", poisoned)
    fields = {"method": "ce", "epochs": 1, "log_every": 1, "clip_norm": clip_norm}
    results = quiet_run(tmp_path, **fields)
    assert [record["step"] for record in events(tmp_path, "skip")] == [4, 8]
    assert all(record["loss"] is not None for record in events(tmp_path, "step"))
    assert results["skipped"] == 2
    for skipped in (3, 7):
        assert all(map(torch.equal, states[skipped], states[skipped + 1]))
    assert not all(map(torch.equal, states[8], states[9]))


def test_weights_of_nan_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    step = Trainer.step

    def poisoned(trainer: Trainer, batches: list) -> None:
        step(trainer, batches)
        if trainer.position.step == 5:  # as a finite gradient that is too large may do
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("inf"))

    monkeypatch.setattr(Trainer, "step", poisoned)
    command = ["train", "--method", "ce", "--checkpoint-every", "2", "--out", str(tmp_path)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the weights are NaN or infinite after step 6; they are not saved" in error
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-0000000002", "step-0000000004"]


@pytest.mark.long
def test_a_killed_rank_is_restarted_and_nothing_changes(teacher: str, tmp_path: Path) -> None:
    flags = ["train", "--epochs", "1", "--checkpoint-every", "2", "--teacher-weights", teacher]
    unbroken = run_in_two_processes(tmp_path / "unbroken", *flags)
    assert unbroken["environment"]["processes"] == 2
    broken = run_in_two_processes(
        tmp_path / "broken",
        *flags,
        program=(str(TESTS / "killed_rank.py"),),
        PET_MAX_RESTARTS="2",
    )
    assert [record["step"] for record in events(tmp_path / "broken", "resume")] == [2]
    assert broken["sha256"] == unbroken["sha256"]
