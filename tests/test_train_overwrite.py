"""--overwrite: the run that is replaced is whole until the new one has a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import quiet_run

import ndfast
from ndfast.train.engine.trainer import Trainer
from ndfast.train.errors import ConfigError
from ndfast.train.runs import replaced

OLD = {"epochs": 1, "max_steps": 2}
NAMES = ("config.json", "log.jsonl", "checkpoints", "teacher", "runs")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("teacher")
    quiet_run(out, model="convnet32", method="ce", **OLD)
    return str(out / "model.safetensors")


@pytest.mark.parametrize("bad", ["teacher", "class_means", "width"])
def test_bad_input_leaves_the_run_whole(bad: str, teacher: str, tmp_path: Path) -> None:
    out, means = tmp_path / "run", tmp_path / "means.npz"
    quiet_run(out, teacher_weights=teacher, **OLD)
    before = content(out)
    about = {"class_means": {"teacher_sha256": "of another"}, "width": {}}.get(bad, {})
    ndfast.save_class_means(means, torch.rand(10, 3 if bad == "width" else 128), **about)
    fields, sentence = {
        "teacher": ({"teacher": "convnet4"}, "does not fit the network"),
        "class_means": ({"class_means": str(means)}, "is of another teacher"),
        "width": ({"class_means": str(means)}, "teacher and data take"),
    }[bad]
    with pytest.raises(ConfigError, match=sentence):
        quiet_run(out, **OLD | {"teacher_weights": teacher, **fields}, overwrite=True)
    assert content(out) == before
    resumed = quiet_run(out, teacher_weights=teacher, **OLD | {"max_steps": 3}, resume=True)
    assert resumed["steps"] == 3


@pytest.mark.parametrize("method", ["ce", "kd++"])  # with class means all images are read before
def test_a_broken_image_leaves_the_run_whole(method: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision_ops", reason="needs torchvision")
    from PIL import Image

    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(4):
                image = Image.new("RGB", (32, 32), (60 * number, 0, 0))
                image.save(tmp_path / "data" / part / label / f"{number}.png")
    fields: dict[str, Any] = {"data": "folder", "data_dir": str(tmp_path / "data")}
    fields |= {"image_size": 32, "model": "convnet4", "teacher": "convnet4", "batch_size": 4}
    out = tmp_path / "run"
    quiet_run(out, **fields, **OLD | {"method": method})
    before = content(out)
    (tmp_path / "data" / "train" / "a" / "2.png").write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"2\.png is no image"):
        quiet_run(out, **fields, **OLD | {"method": method}, overwrite=True)
    assert content(out) == before


def test_a_new_run_with_a_checkpoint_stays(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_run(tmp_path, teacher_weights=teacher, **OLD)
    step = Trainer.step

    def broken(trainer: Trainer, batches: list) -> None:
        if trainer.position.step == 2:
            raise KeyboardInterrupt
        step(trainer, batches)

    monkeypatch.setattr(Trainer, "step", broken)
    new = {"teacher_weights": teacher, "epochs": 1, "seed": 1, "max_steps": 3}
    with pytest.raises(KeyboardInterrupt):
        quiet_run(tmp_path, **new, overwrite=True, checkpoint_every=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "step-0000000001",
        "step-0000000002",
    ]
    assert not any(path.name.startswith(".replaced") for path in tmp_path.iterdir())
    monkeypatch.undo()
    assert quiet_run(tmp_path, **new, resume=True)["steps"] == 3


def test_a_kill_at_any_moment_of_the_moving_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the n-th change of the folder, for every n; then --overwrite again."""

    class Killed(BaseException):
        pass

    left = [0]

    def or_killed(change: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return change(*arguments, **options)

        return changed

    def old_run(folder: Path) -> dict[str, bytes]:
        (folder / "checkpoints" / "step-0000000002").mkdir(parents=True)
        (folder / "checkpoints" / "step-0000000002" / "weights").write_text("old")
        for name in ("config.json", "log.jsonl"):
            (folder / name).write_text("old")
        return content(folder)

    kills = 0
    while True:
        folder = tmp_path / str(kills)
        before = old_run(folder)
        with monkeypatch.context() as patch:
            left[0] = kills
            for name in ("rename", "rmdir", "unlink", "mkdir"):
                patch.setattr(Path, name, or_killed(getattr(Path, name)))
            try:
                replaced.set_aside(folder, NAMES)
                (folder / "teacher").mkdir()
                (folder / "teacher" / "config.json").write_text("new")
                (folder / "config.json").write_text("new")
                replaced.settle(folder, NAMES)
                break
            except Killed:
                kills += 1
        replaced.settle(folder, NAMES)
        assert content(folder) == before, kills
    assert content(folder) == before
    assert kills > 8


def test_what_is_left_of_the_old_run_goes_once_the_new_one_has_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    replaced.set_aside(tmp_path, NAMES)
    (tmp_path / "teacher" / "checkpoints" / "step-0000000001").mkdir(parents=True)
    assert not replaced.settle(tmp_path, NAMES)
    assert os.listdir(tmp_path) == ["teacher"]
