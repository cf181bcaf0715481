"""`~` is the home folder in every path that ndfast takes, and no folder of that name is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ndfast
from ndfast.files import expand_home

pytest.importorskip("accelerate", reason="needs the extra [train]")

from saved_weights import assert_same, build
from small_runs import quiet_run

from ndfast.cli import main
from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.detection.coco import read_coco
from ndfast.train.detection.shapes import write_shapes
from ndfast.train.models import build_model
from ndfast.train.models.weights import load_weights, save_weights
from ndfast.train.recipes import load_recipe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder, and beside it the working folder in which no ~ may appear."""
    folder, here = tmp_path / "home", tmp_path / "here"
    folder.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    yield folder
    assert list(here.iterdir()) == []


def test_as_a_shell_expands_it(home: Path) -> None:
    assert expand_home("~") == home
    assert expand_home("~/a/b.npz") == home / "a" / "b.npz"
    assert expand_home(Path("~/a")) == home / "a"
    assert expand_home("~root/a") == Path("~root/a").expanduser()
    for path in ("a/~", "./~/a", "~nobody-of-this-name/a", "a~", "/~"):
        assert expand_home(path) == Path(path)


def test_class_means_files(home: Path) -> None:
    means = torch.rand(3, 4)
    for name in ("means.json", "means.npz", "means.safetensors"):
        ndfast.save_class_means(f"~/{name}", means)
        assert (home / name).is_file()
        assert torch.equal(ndfast.load_class_means(Path("~") / name), means)
    assert ndfast.load_class_means_metadata("~/means.npz")["num_classes"] == 3
    assert main(["class-means", "~/means.npz", "--to=~/other.json"]) == 0
    assert torch.equal(ndfast.load_class_means(home / "other.json"), means)


def test_weights_files(home: Path) -> None:
    saved, loaded = build(), build()
    save_weights(saved, "~/w.safetensors")
    assert (home / "w.safetensors").is_file()
    load_weights(loaded, "~/w.safetensors")
    assert_same(saved, loaded)


@pytest.mark.parametrize("config", [TrainConfig, DetectionConfig])
def test_every_flag_that_is_a_path(config: type, home: Path) -> None:
    names = ("data_dir", "teacher_weights", "class_means", "out")
    given = config(**{name: f"~/{name}" for name in names})
    assert {name: getattr(given, name) for name in names} == {
        name: str(home / name) for name in names
    }
    words = TrainConfig(teacher_weights="pretrained", class_means="augmented")
    assert (words.teacher_weights, words.class_means) == ("pretrained", "augmented")


def test_data(home: Path) -> None:
    arrays = {f"x_{part}": np.zeros((2, 8, 8), np.uint8) for part in ("train", "test")}
    np.savez(home / "some.npz", y_train=[0, 1], y_test=[0, 1], **arrays)
    assert build_data("npz:~/some.npz").num_classes == 2
    (home / "cifar10.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data: .*/home/cifar10\.npz is no npz file"):
        build_data("cifar10", "~")
    pytest.importorskip("PIL", reason="needs Pillow")
    write_shapes(home / "shapes", 5, 3)
    assert len(read_coco(Path("~/shapes")).train) == 5


def test_a_recipe_and_what_it_names(home: Path) -> None:
    (home / "own.toml").write_text('data_dir = "~/data"\nteacher_weights = "~/w.pth"\n')
    config = TrainConfig(**load_recipe("~/own.toml"))
    assert (config.data_dir, config.teacher_weights) == (f"{home}/data", f"{home}/w.pth")


def test_class_means_of_a_teacher(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    save_weights(build_model("convnet4", 10, (1, 8, 8)), "~/w.safetensors")
    made = ["--teacher", "convnet4", "--teacher-weights=~/w.safetensors", "--data", "digits"]
    assert main(["class-means", *made, "--out=~/means.npz"]) == 0
    assert ndfast.load_class_means(home / "means.npz").shape == (10, 16)


def test_a_run_and_its_resumption(home: Path) -> None:
    fields = {"model": "convnet4", "teacher": "convnet4", "epochs": 1, "method": "kd++"}
    results = quiet_run(Path("~/run"), **fields)
    kept = json.loads((home / "run" / "config.json").read_text())
    assert kept["out"] == str(home / "run")
    assert quiet_run(Path("~/run"), **fields, resume=True)["sha256"] == results["sha256"]
    again = TrainConfig(**load_recipe("~/run/config.json"), out="~/again")
    assert (again.epochs, again.out) == (1, str(home / "again"))
