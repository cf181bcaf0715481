"""`ndfast detect` in two processes: one training, one set of class means, one evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")
pytest.importorskip("pycocotools", reason="needs pycocotools")

from accelerate import Accelerator
from detect_on_ranks import POISONED
from small_detection import D, K, detector
from small_runs import events, run_in_two_processes

import ndfast
from ndfast.train.detection.class_means import take_class_means
from ndfast.train.detection.coco import DetectionData, read_coco
from ndfast.train.detection.evaluation import average_precision, feature_metrics
from ndfast.train.detection.small_detector import SmallDetector
from ndfast.train.models.weights import load_weights

pytestmark = pytest.mark.slow

ROWS = 1000  # all proposals are rows: none is left to chance
PROGRAM = str(Path(__file__).with_name("detect_on_ranks.py"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finds some objects; 49 images, so that one process has one more than the other."""
    out = tmp_path_factory.mktemp("run")
    flags = ["detect", "--images", "49", "--epochs", "12", "--batch-size", "4"]
    flags += ["--dim", str(D), "--rows", str(ROWS), "--teacher", "tiny", "--methods", "kd++"]
    run_in_two_processes(out, *flags, program=(PROGRAM,))
    return out


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def data(out: Path) -> DetectionData:
    return read_coco(out / "shapes")


def of_rank(out: Path, rank: int) -> dict[str, Any]:
    return json.loads((out / f"rank-{rank}.json").read_text())


def saved(folder: Path) -> SmallDetector:
    found = detector(rows=ROWS).eval()
    load_weights(found, folder / "model.safetensors")
    return found


def test_both_have_the_weights_that_are_saved(out: Path, results: dict[str, Any]) -> None:
    assert results["environment"]["processes"] == 2
    first, second = (of_rank(out, rank)["trainings"] for rank in (0, 1))
    assert first == second
    folders = (out / "teacher", out / "runs" / "kd++")
    for training, folder in zip(first, folders, strict=True):
        (end,) = events(folder, "end")
        assert end["sha256"] == training["weights"]
        assert end["step"] == 12 * (49 // 8)


def test_a_nan_in_one_is_skipped_in_both(out: Path, results: dict[str, Any]) -> None:
    assert results["skipped"] == {"teacher": 0, "kd++": 1}
    assert [of_rank(out, rank)["trainings"][1]["skipped"] for rank in (0, 1)] == [1, 1]
    skips = events(out / "runs" / "kd++", "skip")
    assert [(each["step"], each["in_a_row"]) for each in skips] == [(POISONED + 1, 1)]


def test_both_take_the_class_means_together(out: Path, data: DetectionData) -> None:
    means, counts = take_class_means(Accelerator(cpu=True), saved(out / "teacher"), data.train, 4)
    own = [torch.tensor(of_rank(out, rank)["rows"]) for rank in (0, 1)]
    assert all(rows.sum() > counts.sum() / 3 for rows in own)  # neither takes them alone
    assert torch.equal(own[0] + own[1], counts)
    found = ndfast.load_class_means(out / "class_means.safetensors")
    assert found.shape == (K + 1, D)
    torch.testing.assert_close(found, means, rtol=1e-4, atol=1e-5)


def test_what_is_reported_is_what_one_process_finds(
    out: Path, data: DetectionData, results: dict[str, Any]
) -> None:
    means = ndfast.load_class_means(out / "class_means.safetensors")
    student = saved(out / "runs" / "kd++")
    expected = average_precision(student, data.test) | feature_metrics(student, data.test, means)
    assert expected["map50"] > 0
    found = results["students"]["kd++"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
