"""The class means of a teacher: made in one pass, tied to it, and refused for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate.state import AcceleratorState
from small_runs import quiet_run, run_in_two_processes
from whole_dataset import all_rows

import ndfast
from ndfast.cli import main
from ndfast.train.data import build_data
from ndfast.train.data.batches import Batch, EvaluationBatches
from ndfast.train.errors import ConfigError
from ndfast.train.models import build_model
from ndfast.train.models.weights import load_weights, save_weights, weights_digest


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two checkpoints of the same network."""
    folder, paths = tmp_path_factory.mktemp("teachers"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(str(folder / f"{seed}.safetensors"))
        save_weights(build_model("convnet32", 10, (1, 8, 8)), Path(paths[-1]))
    return paths


def make(weights: str, out: Path, *more: str) -> int:
    AcceleratorState._reset_state()  # one process has one precision otherwise
    command = ["class-means", "--teacher", "convnet32", "--data", "digits", "--teacher-weights"]
    return main([*command, weights, "--out", str(out), *more])


def expected_means(weights: str) -> tuple[Tensor, str]:
    network = build_model("convnet32", 10, (1, 8, 8)).eval()
    load_weights(network, Path(weights))
    train = build_data("digits").train
    images, labels = train.__getitems__(Batch(list(range(len(train))), None))
    with torch.no_grad():
        features = network(images).features
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(10)])
    return means, weights_digest(network)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_the_command_makes_them(suffix: str, teachers: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"means{suffix}"
    assert make(teachers[0], path) == 0
    means, digest = expected_means(teachers[0])
    torch.testing.assert_close(ndfast.load_class_means(path), means)
    metadata = ndfast.load_class_means_metadata(path)
    assert metadata["counts"].sum() == 359
    assert (metadata["teacher"], metadata["teacher_sha256"]) == ("convnet32", digest)
    assert (metadata["data"], metadata["images"]) == ("digits", "as they are")


def test_rows_that_fill_a_batch_up_may_not_count(
    teachers: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(EvaluationBatches, "counted", lambda self, step: self.batch_size)
    assert make(teachers[0], tmp_path / "means.npz") == 2
    sentence = "class_means: expected_count: got 384 rows; expected 359: some came twice"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "means.npz").exists()


class Augmented(NamedTuple):
    """Random images that are augmented in training, and the arguments for a teacher on them."""

    flags: dict[str, str]
    means: Tensor
    plain_means: Tensor

    @property
    def arguments(self) -> list[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in self.flags.items()]


@pytest.fixture
def augmented(tmp_path: Path, seed: int) -> Augmented:
    rows, K = 300, 10
    images = torch.randint(256, (rows, 3, 8, 8), dtype=torch.uint8).numpy()
    labels = torch.arange(rows).remainder(K).numpy()
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    network = build_model("convnet32", K, (3, 8, 8)).eval()
    save_weights(network, tmp_path / "teacher.safetensors")
    train = build_data(f"npz:{path}").train
    found, _ = all_rows(train, seed=0)
    plain, labels = all_rows(train)
    with torch.no_grad():
        means = [
            torch.stack([features[labels == label].mean(dim=0) for label in range(K)]).float()
            for features in (network(found).features.double(), network(plain).features.double())
        ]
    flags = {
        "data": f"npz:{path}",
        "teacher": "convnet32",
        "teacher_weights": str(tmp_path / "teacher.safetensors"),
    }
    return Augmented(flags, *means)


def test_a_run_takes_them_over_augmented_images(augmented: Augmented, tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    made = tmp_path / "made.npz"
    assert main(["class-means", *augmented.arguments, "--augmented", "--out", str(made)]) == 0
    means = ndfast.load_class_means(made)
    torch.testing.assert_close(means, augmented.means)
    assert ndfast.load_class_means_metadata(made)["images"] == "augmented"

    def run_means(name: str, **fields: Any) -> tuple[Tensor, str]:
        quiet_run(tmp_path / name, **augmented.flags, epochs=1, **fields)
        kept = tmp_path / name / "class_means.safetensors"
        return ndfast.load_class_means(kept), ndfast.load_class_means_metadata(kept)["images"]

    # The teacher's, whatever the run's seed, and again where the run goes on.
    for fields in ({"max_steps": 3}, {"resume": True}):
        found, images = run_means("run", class_means="augmented", seed=5, **fields)
        assert torch.equal(found, means)
        assert images == "augmented"
    found, images = run_means("from file", class_means=str(made))
    assert torch.equal(found, means)
    assert images == "augmented"
    found, images = run_means("plain")
    torch.testing.assert_close(found, augmented.plain_means)
    assert (found - means).norm(dim=1).min() > 0.01
    assert images == "as they are"


def test_images_that_training_does_not_augment(teachers: list[str], tmp_path: Path) -> None:
    quiet_run(tmp_path, teacher_weights=teachers[0], epochs=1, class_means="augmented")
    means, _ = expected_means(teachers[0])
    torch.testing.assert_close(ndfast.load_class_means(tmp_path / "class_means.safetensors"), means)
    metadata = ndfast.load_class_means_metadata(tmp_path / "class_means.safetensors")
    assert metadata["images"] == "as they are"


@pytest.mark.long
def test_two_processes_augment_as_one_does(augmented: Augmented, tmp_path: Path) -> None:
    flags = [*augmented.arguments, "--class-means", "augmented", "--max-steps", "1"]
    run_in_two_processes(tmp_path / "run", "train", *flags)
    found = ndfast.load_class_means(tmp_path / "run" / "class_means.safetensors")
    torch.testing.assert_close(found, augmented.means)


@pytest.mark.long
def test_two_processes_share_the_pass(teachers: list[str], tmp_path: Path) -> None:
    # Where Accelerate does not join as many processes as torchrun starts, the command refuses.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = ["class-means", "--teacher", "convnet32", "--data", "digits", "--teacher-weights"]
    done = subprocess.run(
        [*launch, "-m", "ndfast", *command, teachers[0], "--out", str(tmp_path / "means.npz")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    means, _ = expected_means(teachers[0])
    torch.testing.assert_close(ndfast.load_class_means(tmp_path / "means.npz"), means)
    counts = ndfast.load_class_means_metadata(tmp_path / "means.npz")["counts"]
    assert counts.sum() == 359  # an odd number: one process has a row more


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--out", "means.json"], "out: got 'means.json'; expected a .safetensors or .npz file"),
        (["--out", "nowhere/means.npz"], "out: cannot write to 'nowhere/means.npz'"),
        (["--teacher", "convnet4"], "0.safetensors"),
        (["--teacher-weights", "nowhere.pt"], "nowhere.pt"),
        (["--precision", "fp16"], "precision: got fp16"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(
    more: list[str], sentence: str, teachers: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert make(teachers[0], tmp_path / "means.npz", *more) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def _save(path: Path, means: Tensor, **about: str) -> None:
    ndfast.save_class_means(path, means, **about)


def test_means_of_another_teacher_are_refused(
    teachers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    means, _ = expected_means(teachers[0])
    others = {
        "is of another teacher": tmp_path / "other.npz",
        "teacher and data take [10, 128]": tmp_path / "narrow.npz",
        "[9, 128]; teacher": tmp_path / "few.npz",
        "is of another data set": tmp_path / "data.npz",
        "SHA-256 does not fit": tmp_path / "damaged.npz",
    }
    right = tmp_path / "right.npz"
    assert make(teachers[0], right) == 0
    assert make(teachers[1], others["is of another teacher"]) == 0
    _save(others["teacher and data take [10, 128]"], means[:, :-1])
    _save(others["[9, 128]; teacher"], means[:-1])
    _save(others["is of another data set"], means, data="mnist1d")
    damaged = bytearray(right.read_bytes())
    damaged[damaged.index(b"class_means.npy") + 200] ^= 1
    others["SHA-256 does not fit"].write_bytes(damaged)
    capsys.readouterr()
    command = ["train", "--epochs", "1", "--teacher-weights", teachers[0], "--out"]
    for sentence, path in others.items():
        out = tmp_path / "run"
        assert main([*command, str(out), "--class-means", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert sentence in error or (path.name == "damaged.npz" and "cannot be read" in error)
        assert not (out / "config.json").exists()  # the folder can be used once it is mended
    assert main([*command, str(tmp_path / "run"), "--class-means", str(right)]) == 0
    json = tmp_path / "kdpp.json"  # does not say whose it is
    ndfast.save_class_means(json, means)
    assert main([*command, str(tmp_path / "second"), "--class-means", str(json)]) == 0


def test_means_that_do_not_say_whose_they_are(tmp_path: Path) -> None:
    for seed in (0, 1):
        quiet_run(tmp_path / str(seed), model="convnet32", method="ce", epochs=1, seed=seed)
    own, _ = expected_means(str(tmp_path / "0" / "model.safetensors"))
    other, _ = expected_means(str(tmp_path / "1" / "model.safetensors"))
    path = tmp_path / "means.json"
    fields = {"epochs": 1, "teacher_weights": str(tmp_path / "0" / "model.safetensors")}
    for means in (other, own.roll(1, dims=0)):
        ndfast.save_class_means(path, means)
        with pytest.raises(ConfigError, match="does not say whose it is, and is not of this"):
            quiet_run(tmp_path / "run", **fields, class_means=str(path))
    ndfast.save_class_means(path, own)
    quiet_run(tmp_path / "run", **fields, class_means=str(path))
    kept = ndfast.load_class_means_metadata(tmp_path / "run" / "class_means.safetensors")
    assert "teacher_sha256" not in kept  # it was not told
    assert (kept.get("teacher"), kept["source"]) == (None, str(path))


def test_means_from_the_classifier(teachers: list[str], tmp_path: Path) -> None:
    fields = {"teacher_weights": teachers[0], "epochs": 1}
    quiet_run(tmp_path, class_means="classifier", **fields)
    network = build_model("convnet32", 10, (1, 8, 8))
    load_weights(network, Path(teachers[0]))
    means = ndfast.load_class_means(tmp_path / "class_means.safetensors")
    assert torch.equal(means, network.classifier.weight)


def test_learnable_means_start_from_the_teachers_and_move(
    teachers: list[str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    fields = {"teacher_weights": teachers[0], "epochs": 1, "learnable_class_means": True}
    quiet_run(tmp_path, **fields)
    means, _ = expected_means(teachers[0])
    start = ndfast.load_class_means(tmp_path / "class_means.safetensors")
    torch.testing.assert_close(start, means)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    trained = load_file(checkpoint / "model.safetensors")["nd.class_means"]
    assert (trained - start).norm(dim=1).min() > 0
