"""Whether fused loss and reference give the same training, where a rounding ends far away too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="needs the extra [train]")

from safetensors.torch import save_file

import ndfast
from ndfast.cli import main
from ndfast.train.trajectories import (
    compare_trajectories,
    round_otherwise,
    write_rounded_otherwise,
)


def write_run(folder: Path, losses: list[float], weights: list[float]) -> Path:
    """What is compared of a run."""
    folder.mkdir()
    lines = [json.dumps({"event": "step", "loss": loss}) for loss in losses]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"event": "end"}', ""]))
    save_file({"weight": torch.tensor(weights)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("losses", "weights", "apart"),
    [
        ([2.0, 5.0], [3.0, 4.5], (0.25, 0.1)),
        ([2.0, 5.0], [3.0, 4.0], (0.25, 0.0)),
        ([2.0, 4.0], [3.0, 4.5], (0.0, 0.1)),
        ([2.0, 4.0], [3.0, 4.0], (0.0, 0.0)),
    ],
)
def test_compare_trajectories_by_hand(
    losses: list[float], weights: list[float], apart: tuple[float, float], tmp_path: Path
) -> None:
    fused = write_run(tmp_path / "fused", losses, weights)
    reference = write_run(tmp_path / "reference", [2.0, 4.0], [3.0, 4.0])
    found = compare_trajectories(fused, reference)
    assert found["steps"] == 2
    assert (found["max_loss_difference"], found["parameter_difference"]) == pytest.approx(apart)
    assert found["agrees"] == (apart == (0.0, 0.0))
    assert found["rounding"] is None


@pytest.mark.parametrize(
    ("losses", "weights", "agrees"),
    [
        ([10.0, 10.9, 10.5], [3.0, 4.9], True),  # of a loss 0.1 are allowed from step 2 on, of
        ([10.0, 10.0, 11.1], [3.0, 4.0], False),  # parameters 0.2
        ([10.0, 10.0, 10.0], [3.0, 5.1], False),
        ([10.02, 10.0, 10.0], [3.0, 4.0], False),  # by step 1 the rounding has done nothing
        ([float("nan"), 10.0, 10.0], [3.0, 4.0], False),
    ],
)
def test_as_far_apart_as_roundings_by_hand(
    losses: list[float], weights: list[float], agrees: bool, tmp_path: Path
) -> None:
    fused = write_run(tmp_path / "fused", losses, weights)
    reference = write_run(tmp_path / "reference", [10.0] * 3, [3.0, 4.0])
    found = compare_trajectories(
        fused,
        reference,
        lambda seed: write_run(tmp_path / f"rounded{seed}", [10.0, 10.1, 10.0], [3.0, 4.1]),
    )
    assert found["agrees"] is agrees
    assert not compare_trajectories(fused, reference)["agrees"]
    rounding = found["rounding"]
    assert rounding["max_loss_difference"] == pytest.approx(0.01)
    assert rounding["parameter_difference"] == pytest.approx(0.02)
    assert rounding["times"] == 10
    assert rounding["runs"] == (1 if agrees else 3)


def test_the_rounding_that_does_most_counts(tmp_path: Path) -> None:
    fused = write_run(tmp_path / "fused", [10.0, 10.9, 10.0], [3.0, 4.9])
    reference = write_run(tmp_path / "reference", [10.0] * 3, [3.0, 4.0])
    # The first says less than the second of the losses, the second less of the parameters.
    of_roundings = [([10.0, 10.0, 10.02], [3.0, 4.1]), ([10.0, 10.1, 10.0], [3.0, 4.01])]

    def rounded(seed: int) -> Path:
        return write_run(tmp_path / f"rounded{seed}", *of_roundings[seed])

    found = compare_trajectories(fused, reference, rounded)
    assert found["agrees"]
    assert found["rounding"] == {
        "max_loss_difference": pytest.approx(0.01), "parameter_difference": pytest.approx(0.02),
        "runs": 2, "times": 10,
    }  # fmt: skip


def test_runs_that_are_close_need_no_third(tmp_path: Path) -> None:
    fused = write_run(tmp_path / "fused", [2.001], [3.0, 4.001])
    reference = write_run(tmp_path / "reference", [2.0], [3.0, 4.0])
    assert compare_trajectories(fused, reference, lambda seed: pytest.fail("trained"))["agrees"]


def test_every_number_is_rounded_to_a_neighbour(seed: int, tmp_path: Path) -> None:
    means = torch.randn(7, 64)
    rounded = round_otherwise(means, 0)
    up, down = (torch.nextafter(means, torch.full_like(means, end)) for end in (9.0, -9.0))
    assert ((rounded == up) | (rounded == down)).all()
    assert 0.3 < (rounded == up).float().mean() < 0.7
    assert not torch.equal(rounded, round_otherwise(means, 1))
    source, path = tmp_path / "means.safetensors", tmp_path / "rounded.safetensors"
    counts = torch.arange(7)
    ndfast.save_class_means(source, means, counts=counts, teacher="x", data="y")
    write_rounded_otherwise(source, path, 0)
    assert torch.equal(ndfast.load_class_means(path), rounded)
    told, expected = (ndfast.load_class_means_metadata(file) for file in (path, source))
    for metadata in (told, expected):
        del metadata["sha256"]
    assert torch.equal(told.pop("counts"), expected.pop("counts"))
    assert told == expected


# ResNet-20's first steps at a rate of 0.1 take a rounding beyond the tolerance.
DEEP = ["--data", "synthetic:160,10,3x16x16", "--teacher", "resnet8x4", "--model", "resnet20"]
DEEP += ["--batch-size", "16", "--lr", "0.1", "--teacher-lr", "0.01", "--milestones", "9"]


def test_a_training_that_a_rounding_takes_far_away_agrees(tmp_path: Path) -> None:
    command = ["compare", "--methods", "kd++", "--epochs", "1", "--seeds", "1", *DEEP]
    assert main([*command, "--backend", "native", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["trajectories"]["kd++"]
    assert found["max_loss_difference"] > found["tolerance"]
    assert found["rounding"]["max_loss_difference"] > found["tolerance"]


@pytest.mark.parametrize("defect", ["loss", "gradient"])
def test_disagreement_with_the_reference_fails_the_command(
    defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = ndfast.NDLoss.forward

    def wrong(module: ndfast.NDLoss, *arguments: Any) -> Tensor:
        loss = right(module, *arguments)
        if module.backend == "reference":
            return loss
        return 1.02 * loss if defect == "loss" else loss + 0.02 * (loss - loss.detach())

    monkeypatch.setattr(ndfast.NDLoss, "forward", wrong)
    command = ["compare", "--methods", "kd++", "--epochs", "2", "--seeds", "1"]
    assert main([*command, "--backend", "native", "--out", str(tmp_path)]) == 1
    assert "disagree" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["trajectories"]["kd++"]
    assert not found["agrees"]
    runs = [tmp_path / f"runs/kd++-seed0{end}/results.json" for end in ("", "-reference")]
    fused, reference = (json.loads(run.read_text())["test"]["accuracy"] for run in runs)
    assert fused != reference
    assert found["accuracy_difference"] == fused - reference
