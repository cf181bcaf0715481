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

pytestmark = pytest.mark.long

BATCH = 4
ROWS = 1000  # all proposals are rows: none is left to chance
PROGRAM = str(Path(__file__).with_name("detect_on_ranks.py"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finds some objects; of 53 images and of 17 to test on, the shares are uneven."""
    out = tmp_path_factory.mktemp("run")
    detect_in_two_processes(out, "--images", "53", "--epochs", "12", "--methods", "kd++")
    return out


def detect_in_two_processes(out: Path, *flags: str) -> dict[str, Any]:
    own = ["--batch-size", str(BATCH), "--dim", str(D), "--rows", str(ROWS), "--teacher", "tiny"]
    return run_in_two_processes(out, "detect", *own, *flags, program=(PROGRAM,))


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
        assert end["step"] == 12 * (53 // 8)


def test_a_nan_in_one_is_skipped_in_both(out: Path, results: dict[str, Any]) -> None:
    assert results["skipped"] == {"teacher": 0, "kd++": 1}
    assert [of_rank(out, rank)["trainings"][1]["skipped"] for rank in (0, 1)] == [1, 1]
    skips = events(out / "runs" / "kd++", "skip")
    assert [(each["step"], each["in_a_row"]) for each in skips] == [(POISONED + 1, 1)]


def test_both_take_the_class_means_together(out: Path, data: DetectionData) -> None:
    means, counts = take_class_means(
        Accelerator(cpu=True), saved(out / "teacher"), data.train, BATCH
    )
    own = [torch.tensor(of_rank(out, rank)["rows"]) for rank in (0, 1)]
    assert all(rows.sum() > counts.sum() / 3 for rows in own)  # neither takes them alone
    assert torch.equal(own[0] + own[1], counts)
    found = ndfast.load_class_means(out / "class_means.safetensors")
    assert found.shape == (K + 1, D)
    torch.testing.assert_close(found, means, rtol=1e-4, atol=1e-5)


def found_by_one(out: Path, detector: SmallDetector, batch_size: int) -> dict[str, float]:
    test = (Accelerator(cpu=True), detector, read_coco(out / "shapes").test, batch_size)
    means = ndfast.load_class_means(out / "class_means.safetensors")
    return average_precision(*test) | feature_metrics(*test, means)


def test_what_is_reported_is_what_one_process_finds(out: Path, results: dict[str, Any]) -> None:
    expected = found_by_one(out, saved(out / "runs" / "kd++"), BATCH)
    assert 0 < expected["map"] < expected["map50"] < 1
    found = results["students"]["kd++"]
    for name in ("map", "map50"):
        assert found[name] == expected[name]
    for name in ("norm", "cosine"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


def test_they_share_the_test_images(out: Path, results: dict[str, Any]) -> None:
    assert results["data"]["test"] == 17
    # The teacher and one student; batches of 4, 4 and 1, and of 4 and 4.
    assert [of_rank(out, rank)["images"] for rank in (0, 1)] == [2 * 9, 2 * 8]


def test_a_test_set_in_which_one_has_no_share(out: Path, tmp_path: Path) -> None:
    weights = ["--teacher-weights", str(out / "teacher" / "model.safetensors")]
    run = ["--images", "24", "--batch-size", "8", "--epochs", "1", "--methods", "ce", *weights]
    results = detect_in_two_processes(tmp_path, *run)
    assert [of_rank(tmp_path, rank)["images"] for rank in (0, 1)] == [2 * 8, 0]
    expected = found_by_one(tmp_path, saved(out / "teacher"), 8)
    assert expected["map"] > 0
    assert results["teacher"] == pytest.approx(expected, rel=1e-6)
