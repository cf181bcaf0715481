"""Training in two processes: what is reported is true of what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from small_runs import run_in_two_processes

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.data import build_data
from ndfast.train.distill.evaluation import evaluate
from ndfast.train.models import build_model
from ndfast.train.models.weights import load_weights

pytestmark = pytest.mark.long


def measured(weights: Path) -> dict[str, float]:
    """The metrics of saved weights, in one process."""
    network = build_model("convnet4", 10, (1, 8, 8)).eval()
    load_weights(network, weights)
    test = build_data("digits").test
    return evaluate(
        Accelerator(cpu=True), lambda images: network(images)._asdict(), test, TrainConfig(), None
    )


def test_the_metrics_are_those_of_the_saved_weights(tmp_path: Path) -> None:
    flags = ["--method", "ce", "--epochs", "1", "--batch-size", "8", "--ema", "0.9"]
    found = run_in_two_processes(tmp_path, "train", *flags)
    assert found["environment"]["processes"] == 2
    assert found["test"] == pytest.approx(measured(tmp_path / "model.safetensors"), rel=1e-5)
    assert found["ema"] == pytest.approx(measured(tmp_path / "model_ema.safetensors"), rel=1e-5)


def test_a_detector_learns_from_the_teacher_that_is_saved(tmp_path: Path) -> None:
    flags = ["detect", "--images", "18", "--dim", "16", "--rows", "24", "--epochs", "1"]
    flags += ["--teacher", "tiny", "--methods", "kd++", "--batch-size", "4"]
    trained, saved = tmp_path / "trained", tmp_path / "saved"
    first = run_in_two_processes(trained, *flags)
    weights = str(trained / "teacher" / "model.safetensors")
    again = run_in_two_processes(saved, *flags, "--teacher-weights", weights)
    assert first["students"] == again["students"]
