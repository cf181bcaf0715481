"""Kept outputs that a run does not take, and what `ndfast teacher-outputs` does not write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_outputs import K, Kept, as_arguments, keep_outputs, make
from small_runs import quiet_run

import ndfast
from ndfast.cli import main
from ndfast.train.errors import ConfigError
from ndfast.train.models import build_model
from ndfast.train.models.weights import save_weights


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return keep_outputs(tmp_path_factory.mktemp("kept"))


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


@pytest.mark.parametrize("first", ["--per-epoch", None])
def test_views_and_epochs_do_not_mix(
    first: str | None, kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would take the other's pieces for its own."""
    flags = {**kept.flags, "teacher_weights": kept.weights, "epochs": 2}
    folder = kept.folder
    if first is not None:
        folder = tmp_path / "made"
        assert make(folder, first, **flags) == 0
    before = (folder / "outputs.json").read_bytes()
    assert make(folder, *([] if first is not None else ["--per-epoch"]), **flags) == 2
    got = "got none, but" if first is not None else "expected 0, but"
    assert f"out: data_seed: {got}" in capsys.readouterr().err
    assert (folder / "outputs.json").read_bytes() == before


def test_several_seeds_want_the_data_seed_of_outputs_that_have_one(
    kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**kept.flags, "teacher_weights": kept.weights, "epochs": 2, "data_seed": 7}
    assert make(tmp_path / "made", "--per-epoch", **flags) == 0
    config = kept.config(teacher_outputs=tmp_path / "made")
    del config["method"]
    compare = ["compare", *as_arguments(config), "--methods", "kd", "--seeds", "2"]
    assert main([*compare, "--out", str(tmp_path / "run")]) == 2
    said = "data_seed: got none for several seeds; expected 7, which"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "runs").exists()
