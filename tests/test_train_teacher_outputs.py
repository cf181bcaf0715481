"""A teacher's kept outputs in training: exact, of this teacher, and without its network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate.state import AcceleratorState
from small_runs import events, quiet_run, run_in_two_processes

import ndfast
from ndfast import TeacherOutputs
from ndfast.cli import main
from ndfast.train import kept_outputs
from ndfast.train import teacher as teachers
from ndfast.train.data import arrays, build_data
from ndfast.train.data.arrays import NUM_VIEWS, ArrayDataset, crop_and_flip
from ndfast.train.data.batches import Batch
from ndfast.train.errors import ConfigError
from ndfast.train.models import AnyNetwork, Output, build_model
from ndfast.train.models.weights import load_weights, save_weights

ROWS, K = 40, 4


class Kept(NamedTuple):
    """Images with 162 views, a teacher, and the folder of its outputs."""

    flags: dict[str, Any]
    weights: str
    folder: Path

    def config(self, **fields: Any) -> dict[str, Any]:
        """Fields of a run: of the data and the teacher, and ``fields``."""
        own = {
            "method": "kd++",
            "model": "convnet4",
            "epochs": 2,
            "batch_size": 8,
            "temperature": 4.0,
        }
        return {**self.flags, **own, "distill_warmup": 0, **fields}


def make(out: Path, *more: str, **flags: Any) -> int:
    AcceleratorState._reset_state()  # one process has one precision otherwise
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return main(["teacher-outputs", *given, "--out", str(out), *more])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % K
    # A class has a colour: there is something to learn.
    images = rng.integers(60, size=(ROWS, 3, 8, 8)) + 60 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    file = folder / "images.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    torch.manual_seed(1)
    weights = str(folder / "teacher.safetensors")
    save_weights(build_model("convnet32", K, (3, 8, 8)), Path(weights))
    flags = {"data": f"npz:{file}", "teacher": "convnet32"}
    assert make(folder / "outputs", **flags, teacher_weights=weights) == 0
    return Kept(flags, weights, folder / "outputs")


def hand_over_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a teacher that runs in the steps hand over what is kept, by the same function."""
    run = teachers.Teacher.__call__

    def logits_and_norms(teacher: teachers.Teacher, images: Tensor) -> Output:
        return kept_outputs.as_output(*kept_outputs.logits_and_norms(run(teacher, images)))

    monkeypatch.setattr(teachers.Teacher, "__call__", logits_and_norms)


def load_network(kept: Kept) -> AnyNetwork:
    network = build_model("convnet32", K, (3, 8, 8)).eval()
    load_weights(network, kept.weights)
    return network


def test_every_view_is_kept(kept: Kept) -> None:
    outputs = TeacherOutputs(kept.folder)
    assert (outputs.rows, outputs.num_views, outputs.num_classes) == (ROWS, NUM_VIEWS, K)
    assert outputs.missing() == []
    data, network = build_data(kept.flags["data"]), load_network(kept)
    for view in (0, 80, NUM_VIEWS - 1):
        raw = np.load(kept.flags["data"].removeprefix("npz:"))["x_train"]
        by_hand = crop_and_flip(raw, np.full(ROWS, view))
        images, _ = data.train.__getitems__(Batch([*range(ROWS)], [view] * ROWS))
        mean, std = data.train._mean, data.train._std  # type: ignore[attr-defined]
        assert torch.equal(images, torch.from_numpy(by_hand).float().sub(mean).div(std))
        with torch.no_grad():
            found = network(images)
        logits, norms = outputs.read([*range(ROWS)], [view] * ROWS)
        assert torch.equal(logits, found.logits)
        torch.testing.assert_close(norms, found.features.double().norm(dim=1).float())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method": "kd"},
        {"method": "dkd++"},
        {"method": "dist++", "seed": 3},
        {"accumulate": 2, "data_seed": 7},
        {"method": "ce", "probe": True},
        {"workers": 1},
    ],
    ids=str,
)
def test_a_student_is_the_same_to_the_bit(
    fields: dict[str, Any], kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over_norms(monkeypatch)
    with_outputs = kept.config(**fields, teacher_outputs=str(kept.folder))
    with_network = kept.config(**fields, teacher_weights=kept.weights)
    read = quiet_run(tmp_path / "read", **with_outputs)
    ran = quiet_run(tmp_path / "ran", **with_network)
    assert read["sha256"] == ran["sha256"]
    assert read["test"] == ran["test"]
    for name in ("name", "parameters", "dim", "accuracy", "norm"):
        assert read["teacher"][name] == ran["teacher"][name]
    assert "teacher" not in read["parts_ms"]


def test_a_resumed_student_is_the_same(kept: Kept, tmp_path: Path) -> None:
    config = kept.config(teacher_outputs=str(kept.folder))
    whole = quiet_run(tmp_path / "whole", **config)
    quiet_run(tmp_path / "parts", **config, max_steps=3, checkpoint_every=1)
    parts = quiet_run(tmp_path / "parts", **config, resume=True, checkpoint_every=1)
    assert parts["sha256"] == whole["sha256"]


@pytest.mark.slow
def test_two_processes(kept: Kept, tmp_path: Path) -> None:
    flags = {**kept.flags, "teacher_weights": kept.weights}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    shutil.copytree(kept.folder, tmp_path / "made")
    pieces = sorted((tmp_path / "made").glob("view*"))
    names = {piece.name for piece in pieces}
    for piece in pieces[::3]:  # a part is there already
        piece.unlink()
    run_in_two_processes_without_results(tmp_path / "made", "teacher-outputs", *given)
    assert {piece.name for piece in (tmp_path / "made").glob("view*")} == names
    config = kept.config(teacher_outputs=str(kept.folder))
    given = [f"--{name.replace('_', '-')}={value}" for name, value in config.items()]
    two = run_in_two_processes(tmp_path / "two", "train", *given)
    again = run_in_two_processes(tmp_path / "again", "train", *given, "--no-deterministic")
    assert two["sha256"] == again["sha256"]
    assert two["teacher"]["norm"] > 0


def run_in_two_processes_without_results(out: Path, *arguments: str) -> None:
    (out / "results.json").write_text("{}")
    run_in_two_processes(out, *arguments)


def test_norms_for_features_differ_by_rounding_alone(kept: Kept, tmp_path: Path) -> None:
    """Step by step, of a training with the teacher's features and one with its norms."""
    config = kept.config(log_every=1)
    quiet_run(tmp_path / "features", **config, teacher_weights=kept.weights)
    quiet_run(tmp_path / "norms", **config, teacher_outputs=str(kept.folder))
    features, norms = (
        [step["losses"] for step in events(tmp_path / name, "step")]
        for name in ("features", "norms")
    )
    assert len(features) == len(norms) == 10
    for ours, theirs in zip(features, norms, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_float16_logits(kept: Kept, tmp_path: Path) -> None:
    """A logit is off by half a unit of its last place of 11 bits."""
    assert make(tmp_path, "--dtype=float16", **kept.flags, teacher_weights=kept.weights) == 0
    exact, rounded = TeacherOutputs(kept.folder), TeacherOutputs(tmp_path)
    rows, views = [*range(ROWS)] * 3, [0] * ROWS + [80] * ROWS + [161] * ROWS
    (logits, norms), (half, half_norms) = exact.read(rows, views), rounded.read(rows, views)
    assert half.dtype == torch.float16
    assert torch.equal(norms, half_norms)
    off = (half.float() - logits).abs()
    assert (off <= logits.abs() * 2**-11 + 2**-25).all()
    assert rounded.num_bytes == ROWS * NUM_VIEWS * (4 + 2 * K)


def test_the_network_is_neither_loaded_nor_run(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher was used")

    monkeypatch.setattr(teachers.Teacher, "__call__", refuse)
    for module in (teachers, kept_outputs):
        monkeypatch.setattr(module, "load_teacher", refuse)
    quiet_run(tmp_path, **kept.config(teacher_outputs=str(kept.folder), max_steps=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "convnet4"}, r"teacher_outputs: teacher: expected 'convnet4', but .* was"),
        ({"precision": "bf16"}, r"teacher_outputs: precision: expected 'bf16', but .* was made"),
        (
            {"data": "digits"},
            r"teacher_outputs: data: expected 'digits', but .* was made with 'npz",
        ),
        (
            {"class_means": "augmented"},
            r"class_means: got augmented; the class means in .* as they",
        ),
        ({"mixup": 0.2}, "teacher_outputs: got it with mixup or cutmix; the teacher must be"),
        (
            {"cutmix": 0.2},
            "teacher_outputs: got it with mixup or cutmix; the teacher must be",
        ),
        ({"method": "reviewkd++"}, r"teacher_outputs: got it with reviewkd\+\+, which compares"),
        (
            {"teacher_outputs": "nowhere"},
            "teacher_outputs: cannot read nowhere/outputs.json: No su",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit(
    fields: dict[str, Any], message: str, kept: Kept, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        quiet_run(tmp_path, **kept.config(**{"teacher_outputs": str(kept.folder), **fields}))
    assert "\n" not in str(raised.value)


def test_another_teachers_weights_or_class_means(kept: Kept, tmp_path: Path) -> None:
    weights = str(tmp_path / "other.safetensors")
    torch.manual_seed(2)
    save_weights(build_model("convnet32", K, (3, 8, 8)), Path(weights))
    config = kept.config(teacher_outputs=str(kept.folder))
    with pytest.raises(ConfigError, match="teacher_outputs: teacher_sha256: expected"):
        quiet_run(tmp_path / "run", **config, teacher_weights=weights)
    means = ndfast.load_class_means(kept.folder / "class_means.safetensors")
    ndfast.save_class_means(tmp_path / "other.json", means.roll(1, 0))
    with pytest.raises(ConfigError, match="does not say whose it is, and is not of this teacher"):
        quiet_run(tmp_path / "run", **config, class_means=str(tmp_path / "other.json"))
    ndfast.save_class_means(tmp_path / "same.json", means)
    quiet_run(tmp_path / "run", **config, class_means=str(tmp_path / "same.json"), max_steps=1)


def test_half_made_or_damaged(kept: Kept, tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    shutil.copytree(kept.folder, folder)
    piece = next(folder.glob("view00100*"))
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    config = kept.config(teacher_outputs=str(folder))
    with pytest.raises(ConfigError, match=r"view00100.* is damaged \(its SHA-256 does not fit\)"):
        quiet_run(tmp_path / "run", **config)
    piece.unlink()
    with pytest.raises(ConfigError, match="the outputs of view 100 from row 0 on are not there"):
        quiet_run(tmp_path / "run", **config)
    assert make(folder, **kept.flags, teacher_weights=kept.weights) == 0
    assert piece.read_bytes() == content
    quiet_run(tmp_path / "run", **config, max_steps=1)


def test_making_refuses(kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: str, out: Path = kept.folder, **flags: str) -> str:
        given = {**kept.flags, "teacher_weights": kept.weights, **flags}
        assert make(out, *more, **given) == 2
        return capsys.readouterr().err.strip()

    before = sorted(file.name for file in kept.folder.iterdir())
    assert "out: dtype: got float16, but" in refused("--dtype=float16")
    assert "out: precision: expected 'bf16', but" in refused(precision="bf16")
    (tmp_path / "file").write_text("mine")
    assert "out: cannot write to" in refused(out=tmp_path / "file" / "outputs")
    assert before == sorted(file.name for file in kept.folder.iterdir())
    assert make(kept.folder, **kept.flags) == 2
    assert "teacher_weights: got none; expected a checkpoint" in capsys.readouterr().err


def test_a_view_an_epoch(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data whose views are not finitely many: here these, taken for such."""
    monkeypatch.setattr(arrays, "ArrayDataset", EpochViews)
    flags = {**kept.flags, "teacher_weights": kept.weights}
    assert make(tmp_path / "made", **flags, epochs=2, data_seed=5) == 0
    hand_over_norms(monkeypatch)
    outputs = TeacherOutputs(tmp_path / "made")
    assert (outputs.num_views, outputs.metadata["data_seed"]) == (2, 5)
    config = kept.config(teacher_outputs=str(tmp_path / "made"))
    read = quiet_run(tmp_path / "read", **config, data_seed=5, seed=1)
    ran = quiet_run(
        tmp_path / "ran", **kept.config(teacher_weights=kept.weights), data_seed=5, seed=1
    )
    assert read["sha256"] == ran["sha256"]
    with pytest.raises(ConfigError, match=r"teacher_outputs: data_seed: expected 1, but .* with 5"):
        quiet_run(tmp_path / "run", **config, seed=1)
    with pytest.raises(ConfigError, match=r"teacher_outputs: epochs: got 3; .* holds 2"):
        quiet_run(tmp_path / "run", **{**config, "epochs": 3}, data_seed=5)
    monkeypatch.undo()
    monkeypatch.setattr(arrays, "ArrayDataset", EpochViews)
    assert make(tmp_path / "made", **flags, epochs=3, data_seed=5) == 0
    quiet_run(tmp_path / "run", **{**config, "epochs": 3}, data_seed=5, max_steps=1)


class EpochViews:
    """An ArrayDataset that does not say how many views an image has."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._dataset = ArrayDataset(*arguments, **more)
        self.num_views = None if self._dataset.num_views > 1 else 1
        self.preprocessing = self._dataset.preprocessing

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, batch: Batch) -> tuple[Tensor, ...]:
        return self._dataset.__getitems__(batch)
