"""A teacher's kept outputs in training: exact, of this teacher, and without its network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_outputs import ROWS, K, Kept, as_arguments, hand_over_norms, keep_outputs, make
from small_runs import events, quiet_run, run_in_two_processes, small_config

from ndfast import TeacherOutputs
from ndfast.train.data import arrays, build_data
from ndfast.train.data.arrays import NUM_VIEWS, ArrayDataset, crop_and_flip
from ndfast.train.data.batches import Batch, draw_views
from ndfast.train.distill import kept_outputs
from ndfast.train.distill import teacher as teachers
from ndfast.train.distill.teacher import Teacher, freeze
from ndfast.train.errors import ConfigError
from ndfast.train.models import AnyNetwork, build_model
from ndfast.train.models.weights import load_weights


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return keep_outputs(tmp_path_factory.mktemp("kept"))


def load_network(kept: Kept) -> AnyNetwork:
    network = build_model("convnet32", K, (3, 8, 8))
    load_weights(network, kept.weights)
    return freeze(network, small_config(Path("none")), torch.device("cpu"))


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
    monkeypatch.setattr(Teacher, "__call__", hand_over_norms)
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


@pytest.mark.long
def test_made_by_two_processes(kept: Kept, tmp_path: Path) -> None:
    flags = {**kept.flags, "teacher_weights": kept.weights}
    shutil.copytree(kept.folder, tmp_path / "made")
    pieces = sorted((tmp_path / "made").glob("view*"))
    names = {piece.name for piece in pieces}
    for piece in pieces[::3]:  # a part is there already
        piece.unlink()
    (tmp_path / "made" / "results.json").write_text("{}")  # which is read at the end
    run_in_two_processes(tmp_path / "made", "teacher-outputs", *as_arguments(flags))
    assert {piece.name for piece in (tmp_path / "made").glob("view*")} == names


@pytest.mark.long
def test_a_student_of_two_processes_is_the_same_to_the_bit(kept: Kept, tmp_path: Path) -> None:
    found = {}
    for name, source in (
        ("read", {"teacher_outputs": kept.folder}),
        ("ran", {"teacher_weights": kept.weights}),
    ):
        arguments = as_arguments({**kept.config(), **source})
        program = (str(Path(__file__).with_name("small_outputs.py")),)
        found[name] = run_in_two_processes(tmp_path / name, "train", *arguments, program=program)
    assert found["read"]["sha256"] == found["ran"]["sha256"]
    assert "teacher" in found["ran"]["parts_ms"]
    assert "teacher" not in found["read"]["parts_ms"]


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

    monkeypatch.setattr(Teacher, "__call__", refuse)
    for module in (teachers, kept_outputs):
        monkeypatch.setattr(module, "load_teacher", refuse)
    quiet_run(tmp_path, **kept.config(teacher_outputs=str(kept.folder), max_steps=2))


def test_a_view_an_epoch(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data whose views are not finitely many: here these, taken for such."""
    monkeypatch.setattr(arrays, "ArrayDataset", EpochViews)
    flags = {**kept.flags, "teacher_weights": kept.weights}
    assert make(tmp_path / "made", **flags, epochs=2, data_seed=5) == 0
    monkeypatch.setattr(Teacher, "__call__", hand_over_norms)
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


def test_per_epoch_where_views_are_finitely_many(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {**kept.flags, "teacher_weights": kept.weights}
    assert make(tmp_path / "made", "--per-epoch", **flags, epochs=2, data_seed=5) == 0
    outputs, all_views = TeacherOutputs(tmp_path / "made"), TeacherOutputs(kept.folder)
    assert (outputs.num_views, outputs.metadata["data_seed"]) == (2, 5)
    rows = [*range(ROWS)]
    for epoch in range(2):
        views = [view % NUM_VIEWS for view in draw_views(5, epoch, rows)]
        for ours, theirs in zip(
            outputs.read(rows, [epoch] * ROWS), all_views.read(rows, views), strict=True
        ):
            assert torch.equal(ours, theirs)
    monkeypatch.setattr(Teacher, "__call__", hand_over_norms)
    config = kept.config(teacher_outputs=str(tmp_path / "made"), data_seed=5, seed=1)
    read = quiet_run(tmp_path / "read", **config)
    ran = quiet_run(
        tmp_path / "ran", **kept.config(teacher_weights=kept.weights, data_seed=5, seed=1)
    )
    assert read["sha256"] == ran["sha256"]
    with pytest.raises(ConfigError, match=r"teacher_outputs: data_seed: expected 1, but .* with 5"):
        quiet_run(tmp_path / "run", **{**config, "data_seed": None})
    with pytest.raises(ConfigError, match=r"teacher_outputs: epochs: got 3; .* holds 2"):
        quiet_run(tmp_path / "run", **{**config, "epochs": 3})


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
