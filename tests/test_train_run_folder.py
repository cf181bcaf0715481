"""A run's folder: nothing in it is lost, and only the run that began there goes on in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import events, quiet_run

import ndfast
from ndfast.cli import main
from ndfast.train.errors import ConfigError

SHORT = {"method": "ce", "epochs": 1, "max_steps": 2}


@pytest.mark.parametrize("flag", [{}, {"overwrite": True}, {"resume": True}], ids=str)
@pytest.mark.parametrize(
    "name", ["runs/notes.txt", "checkpoints/epoch-1.pt", "model.safetensors", "config.json"]
)
def test_what_no_run_wrote_stays(name: str, flag: dict[str, bool], tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"model_type": "bert"}')
    if name == "config.json":  # as Hugging Face's models have one
        (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"out: .* would be lost; expected another folder"):
        quiet_run(tmp_path, **SHORT, **flag)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_files_beside_a_run_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    quiet_run(tmp_path, **SHORT)
    with pytest.raises(ConfigError, match="holds a run; expected --resume to go on"):
        quiet_run(tmp_path, **SHORT)
    quiet_run(tmp_path, **SHORT, seed=1, overwrite=True)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_named_teacher_is_not_replaced(tmp_path: Path) -> None:
    quiet_run(tmp_path / "teacher", **SHORT, model="convnet32", seed=3)
    before = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"the run in .*teacher was started with"):
        quiet_run(tmp_path, epochs=1, overwrite=True)
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["teacher_weights", "class_means"])
def test_overwrite_removes_nothing_that_it_is_to_read(name: str, tmp_path: Path) -> None:
    quiet_run(tmp_path, **SHORT | {"method": "kd++"})
    within = {
        "teacher_weights": "teacher/model.safetensors",
        "class_means": "class_means.safetensors",
    }
    file = tmp_path / within[name]
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=f"{name}: .* which --overwrite removes"):
        quiet_run(tmp_path, **SHORT | {"method": "kd++"}, overwrite=True, **{name: str(file)})
    assert file.read_bytes() == before
    assert (tmp_path / "results.json").exists()


def test_a_teacher_is_trained_to_its_end_whatever_the_student_takes(tmp_path: Path) -> None:
    unbroken = quiet_run(tmp_path / "unbroken", epochs=1)
    quiet_run(tmp_path / "broken", epochs=1, max_steps=3)
    resumed = quiet_run(tmp_path / "broken", epochs=1, resume=True)
    assert resumed["sha256"] == unbroken["sha256"]
    assert [record["step"] for record in events(tmp_path / "broken" / "teacher", "end")] == [11]


def test_a_teacher_stays_while_what_the_student_alone_takes_changes(tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    ndfast.save_class_means(other, torch.ones(10, 128), teacher_sha256="of another")
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"class_means: .* is of another teacher"):
        quiet_run(out, epochs=1, class_means=str(other))
    trained = (out / "teacher" / "model.safetensors").read_bytes()
    changes: dict[str, Any] = {"temperature": 2.0, "mixup": 0.2, "ema": 0.9, "max_steps": 2}
    quiet_run(out, epochs=1, **changes)
    assert (out / "teacher" / "model.safetensors").read_bytes() == trained
    assert len(events(out / "teacher", "start")) == 1


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(256, size=(40, 3, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 2,
        "x_test": rng.integers(256, size=(4, 3, 8, 8), dtype=np.uint8),
        "y_test": np.arange(4) % 2,
    }
    file = tmp_path / "data.npz"
    np.savez(file, **arrays)
    fields = {"data": f"npz:{file}", "model": "resnet20", "batch_size": 8, "method": "ce"}
    quiet_run(tmp_path / "run", **fields, max_steps=2)
    arrays["x_train"][7] ^= 1
    np.savez(file, **arrays)
    with pytest.raises(ConfigError, match=r"resume: the checkpoint is of data npz \w+, this run"):
        quiet_run(tmp_path / "run", **fields, max_steps=4, resume=True)


def test_resuming_in_another_number_of_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ndfast.train.engine.position import Position

    with monkeypatch.context() as patch:
        state_dict = Position.state_dict
        patch.setattr(Position, "state_dict", lambda self: state_dict(self) | {"processes": 2})
        quiet_run(tmp_path, **SHORT)
    with pytest.raises(ConfigError, match="checkpoint is of processes 2, this run has 1"):
        quiet_run(tmp_path, **SHORT | {"max_steps": 4}, resume=True)


def test_checkpoints_after_none_was_whole(tmp_path: Path) -> None:
    unbroken = quiet_run(tmp_path / "unbroken", **SHORT | {"max_steps": 7})
    broken = tmp_path / "broken"
    fields = SHORT | {"keep_checkpoints": 2}
    quiet_run(broken, **fields | {"checkpoint_every": 3, "max_steps": 6})
    for checkpoint in (broken / "checkpoints").iterdir():
        (checkpoint / "optimizer.bin").write_bytes(b"")
    again = quiet_run(broken, **fields | {"checkpoint_every": 4, "max_steps": 7}, resume=True)
    assert [record["step"] for record in events(broken, "start")] == [0]
    assert again["sha256"] == unbroken["sha256"]
    kept = sorted(path.name for path in (broken / "checkpoints").iterdir())
    assert kept == ["step-0000000004", "step-0000000007"]  # not the broken one of step 6


def test_a_comparison_goes_on_where_it_was_moved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["compare", "--methods", "ce", "--seeds", "1", "--epochs", "1", "--resume", "--out"]
    assert main([*command, "first"]) == 0
    shutil.move("first", "second")
    assert main([*command, str(tmp_path / "second")]) == 0, capsys.readouterr().err
    assert len(events(tmp_path / "second" / "runs" / "ce-seed0", "start")) == 1


@pytest.mark.parametrize("place", ["nowhere/means.safetensors", "means.safetensors/means.npz"])
def test_class_means_have_a_place_before_they_are_taken(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import ndfast.train.distill.make_class_means as command

    monkeypatch.chdir(tmp_path)
    Path("means.safetensors").touch()
    monkeypatch.setattr(command, "load_teacher", None)  # it does not come to that
    arguments = ["class-means", "--teacher", "convnet32", "--teacher-weights", "weights"]
    assert main([*arguments, "--data", "digits", "--out", place]) == 2
    assert "out: cannot write to" in capsys.readouterr().err
