"""The training harness: its parts against values worked out by hand, and a short run of it all."""

from __future__ import annotations

import json
import math
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import ndfast

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from matplotlib.image import imread

from ndfast.cli import main
from ndfast.train.comparison import compare_trajectories
from ndfast.train.config import DEFAULTS
from ndfast.train.data import DATA
from ndfast.train.experiment import Experiment, StudentRun
from ndfast.train.loop import evaluate, training_loader
from ndfast.train.losses import kd_loss
from ndfast.train.models import Student


def no_bar() -> None:
    pass


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    config = replace(DEFAULTS["digits"], epochs=1)
    return Experiment(config, DATA["digits"](), Accelerator(cpu=True), no_bar)


def test_kd_loss_by_hand() -> None:
    # At T = 4 the teacher's first row is (3/4, 1/4), the student's (1/2, 1/2); the second rows are
    # equal.
    student = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[4 * math.log(3), 0.0], [1.0, 2.0]], dtype=torch.float64)
    loss = kd_loss(student, teacher, 4.0)
    loss.backward()
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(16 * divergence / 2, rel=1e-12)
    # ∂/∂z_s = T · (p_s − p_t) / N
    expected = torch.tensor([[-0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("method", ["ce", "kd", "kd++"])
def test_student_loss_is_the_weighted_sum(experiment: Experiment, method: str) -> None:
    images, target = experiment.data.train[:8]
    student = experiment.build_student(method, seed=3, probe=False).eval()
    features, logits = student(images)
    teacher_features, teacher_logits = experiment.teacher(images)
    expected = F.cross_entropy(logits, target)
    if method != "ce":
        expected = expected + 1.0 * kd_loss(logits, teacher_logits, 4.0)
    if method == "kd++":
        centres = F.normalize(experiment.class_means[target])
        largest = torch.maximum(features.norm(dim=1), teacher_features.norm(dim=1))
        expected = expected + 2.0 * (1 - (features * centres).sum(dim=1) / largest).mean()
    loss = experiment.student_loss(method, student, images, target, "reference")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("projection", "reaches"), [("trained", True), ("probe", False)])
def test_only_a_trained_projection_reaches_the_network(projection: str, reaches: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.linear(images)
            return features, features

    student = Student(Network(), 4, 5, projection)
    features, logits = student(torch.randn(6, 3))
    assert features.shape == (6, 5)
    assert logits.shape == (6, 4)
    features.square().sum().backward()
    assert (student.network.linear.weight.grad is not None) == reaches
    assert student.projector[2].weight.grad is not None


def test_evaluate_by_hand() -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            assert not self.training
            return images[:, :2], images[:, 2:]

    # Features of norms 5 and 2, of cosines 3/5 and -1; the first row is classified right.
    rows = torch.tensor([[3.0, 4.0, math.log(3), 0.0], [0.0, -2.0, 0.0, 0.0]])
    dataset = TensorDataset(rows, torch.tensor([0, 1]))
    class_means = torch.tensor([[7.0, 0.0], [0.0, 0.5]])
    metrics = evaluate(Accelerator(cpu=True), Network(), dataset, class_means)
    assert metrics == pytest.approx(
        {
            "accuracy": 0.5,
            "cross_entropy": (-math.log(0.75) - math.log(0.5)) / 2,
            "norm": 3.5,
            "cosine": (0.6 - 1.0) / 2,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "sizes", "image_shape"),
    [("digits", (359, 1438), (1, 8, 8)), ("mnist1d", (4000, 1000), (1, 40))],
)
def test_data_needs_no_network_and_keeps_the_generators(
    name: str, sizes: tuple[int, int], image_shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    states = random.getstate(), np.random.get_state()[1].tolist()
    data = DATA[name]()
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    assert (len(data.train), len(data.test)) == sizes
    images, target = data.train[:]
    assert images.dtype == torch.float32
    assert images.shape[1:] == image_shape
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert sorted(set(target.tolist())) == list(range(data.num_classes))
    torch.testing.assert_close(DATA[name]().train[:], (images, target), rtol=0, atol=0)


def test_class_means_are_the_teachers(experiment: Experiment) -> None:
    images, target = experiment.data.train[:]
    with torch.no_grad():
        features, _ = experiment.teacher(images)
    for label, mean in enumerate(experiment.class_means):
        torch.testing.assert_close(mean, features[target == label].mean(dim=0))
    assert experiment.counts.tolist() == target.bincount().tolist()


def test_a_seed_decides_the_student(experiment: Experiment) -> None:
    first, again, other = (
        experiment.train_student("kd++", seed, None, no_bar) for seed in (1, 1, 2)
    )
    assert first.losses == again.losses
    assert first.curves == again.curves
    assert torch.equal(first.parameters, again.parameters)
    assert first.losses != other.losses


def test_a_probe_teaches_the_student_nothing(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = experiment.train_student("kd", 0, None, no_bar).curves[-1]["accuracy"]
    monkeypatch.setattr(
        ndfast, "nd_loss", lambda features, *_, **__: 100 * features.square().mean()
    )
    probed = experiment.train_student("kd", 0, None, no_bar).curves[-1]
    assert probed["accuracy"] == accuracy
    trained = experiment.train_student("kd++", 0, None, no_bar).curves[-1]
    assert trained["cross_entropy"] != probed["cross_entropy"]


def test_the_order_of_images_depends_on_the_seed_alone(experiment: Experiment) -> None:
    def labels(seed: int) -> list[list[int]]:
        return [target.tolist() for _, target in training_loader(experiment.data.train, 32, seed)]

    torch.manual_seed(0)
    first = labels(5)
    torch.manual_seed(1)
    assert labels(5) == first
    assert labels(6) != first


@pytest.mark.parametrize(
    ("losses", "parameters", "apart"),
    [
        ([2.0, 5.0], [3.0, 4.5], (0.25, 0.1)),
        ([2.0, 5.0], [3.0, 4.0], (0.25, 0.0)),
        ([2.0, 4.0], [3.0, 4.5], (0.0, 0.1)),
        ([2.0, 4.0], [3.0, 4.0], (0.0, 0.0)),
    ],
)
def test_compare_trajectories_by_hand(
    losses: list[float], parameters: list[float], apart: tuple[float, float]
) -> None:
    reference = StudentRun([2.0, 4.0], [], torch.tensor([3.0, 4.0]))
    found = compare_trajectories(StudentRun(losses, [], torch.tensor(parameters)), reference)
    assert found["steps"] == 2
    assert (found["max_loss_difference"], found["parameter_difference"]) == pytest.approx(apart)
    assert found["agrees"] == (apart == (0.0, 0.0))


@pytest.fixture(scope="module")
def short_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run") / "new folder"
    threads = torch.get_num_threads()
    assert main(["train", "--epochs", "2", "--seeds", "2", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    return out, json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_run_writes_what_it_found(short_run: tuple[Path, dict[str, Any]]) -> None:
    out, results = short_run
    assert sorted(path.name for path in out.iterdir()) == [
        "class_means.safetensors",
        "curves.png",
        "results.json",
    ]
    assert ndfast.load_class_means(out / "class_means.safetensors").shape == (10, 128)
    counts = ndfast.load_class_means_metadata(out / "class_means.safetensors")["counts"]
    assert counts.sum() == 359
    assert imread(out / "curves.png").std() > 0.05
    assert results["config"]["methods"] == ["ce", "kd", "kd++"]
    assert results["environment"]["torch"] == torch.__version__
    for found in results["methods"].values():
        assert np.array(found["curves"]["accuracy"]).shape == (2, 2)
        assert np.array(found["step_losses"]).shape == (2, 22)
        last = [curve[-1] for curve in found["curves"]["accuracy"]]
        assert found["accuracy"]["seeds"] == last
        assert found["accuracy"]["mean"] == pytest.approx(np.mean(last))
        assert found["accuracy"]["std"] == pytest.approx(np.std(last, ddof=1))
    assert results["trajectories"]["agrees"]
    assert results["trajectories"]["steps"] == 22


def test_results_hold_every_figure_of_the_table(short_run: tuple[Path, dict[str, Any]]) -> None:
    from rich.console import Console

    from ndfast.train.report import build_table

    console = Console(width=80)
    with console.capture() as capture:
        console.print(build_table(short_run[1]))
    shown = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?", capture.get())
    formats: list[Callable[[float], str]] = [
        "{:,}".format,
        "{:g}".format,
        "{:.2f}".format,
        "{:.3f}".format,
        "{:.1e}".format,
        lambda value: f"{100 * value:.2f}",
    ]
    held = {format(number) for number in _numbers(short_run[1]) for format in formats}
    assert len(shown) > 20
    assert [figure for figure in shown if figure not in held] == []


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("defect", ["loss", "gradient"])
def test_disagreement_with_the_reference_fails_the_run(
    defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = ndfast.nd_loss

    def wrong(*arguments: Any, backend: str | None, **options: Any) -> Tensor:
        loss = right(*arguments, backend=backend, **options)
        if backend == "reference":
            return loss
        return 1.02 * loss if defect == "loss" else loss + 0.02 * (loss - loss.detach())

    monkeypatch.setattr(ndfast, "nd_loss", wrong)
    monkeypatch.setattr("ndfast.train.run._resolve_backend", lambda device, name: "native")
    command = ["train", "--method", "kd++", "--epochs", "2", "--seeds", "1", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "disagree" in capsys.readouterr().err
    assert not json.loads((tmp_path / "results.json").read_text())["trajectories"]["agrees"]


def test_divergence_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--lr", "1e30", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "NaN or infinite" in error


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"]
    command += ["ndfast", "train", "--method", "kd++", "--epochs", "1", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["environment"]["processes"] == 2
    assert results["trajectories"]["agrees"]
    counts = ndfast.load_class_means_metadata(tmp_path / "class_means.safetensors")["counts"]
    assert counts.sum() == 359  # an odd number: Accelerate repeats an image to share it evenly
