"""The comparison: pairs by seed, what is written; it goes on where it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from matplotlib.image import imread

import ndfast
from ndfast.cli import main
from ndfast.train.compare.comparison import pair_differences

COMMAND = ["compare", "--epochs", "2", "--seeds", "2", "--methods", "ce", "kd", "kd++", "--out"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("compared") / "new folder"
    threads = torch.get_num_threads()
    assert main([*COMMAND, str(out), "--step-times"]) == 0
    assert torch.get_num_threads() == threads
    return out, json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_it_writes_what_it_found(compared: tuple[Path, dict[str, Any]]) -> None:
    out, results = compared
    assert sorted(path.name for path in out.iterdir()) == [
        "class_means.safetensors",
        "config.json",
        "curves.png",
        "report.html",
        "results.json",
        "runs",
        "teacher",
    ]
    assert ndfast.load_class_means(out / "class_means.safetensors").shape == (10, 128)
    metadata = ndfast.load_class_means_metadata(out / "class_means.safetensors")
    assert metadata["counts"].sum() == 359
    assert imread(out / "curves.png").std() > 0.05
    assert all(method in (out / "report.html").read_text() for method in ("ce", "kd", "kd++"))
    assert list(results["runs"]) == ["ce", "kd", "kd++"]
    for method, runs in results["runs"].items():
        assert [run["config"]["seed"] for run in runs] == [0, 1]
        for seed, run in enumerate(runs):
            assert run["config"]["method"] == method
            assert run == json.loads((out / f"runs/{method}-seed{seed}/results.json").read_text())
            assert {"accuracy", "cosine", "norm_ratio"} <= run["test"].keys()  # probed too
    assert {path.name for path in (out / "runs").iterdir()} == {
        f"{method}-seed{seed}" for method in results["runs"] for seed in (0, 1)
    }
    assert set(results["step_ms"]["kd"]) == {"no ND"}
    assert "reference" in results["step_ms"]["kd++"]
    # Of two seeds the first ten steps of 22; a probe's loss is fused too.
    assert list(results["loss_checks"]) == ["ce", "kd", "kd++"]
    for method, found in results["loss_checks"].items():
        assert found["backend"] != "reference"
        assert (found["steps"], found["agrees"], found["refused"]) == (20, True, None)
        of_runs = [run["loss_check"]["differences"] for run in results["runs"][method]]
        for name, difference in found["differences"].items():
            assert difference == max(each[name] for each in of_runs)
    (pair,) = results["pairs"]
    accuracy = {
        method: [run["test"]["accuracy"] for run in runs]
        for method, runs in results["runs"].items()
    }
    assert pair["differences"] == list(np.subtract(accuracy["kd++"], accuracy["kd"]))


def test_seeds_and_methods_are_added(compared: tuple[Path, dict[str, Any]], capsys: Any) -> None:
    out, results = compared
    assert main([*COMMAND, str(out)]) == 2
    assert "expected --resume to go on" in capsys.readouterr().err
    log = (out / "runs/kd-seed0/log.jsonl").read_text()
    more = ["compare", "--epochs", "2", "--seeds", "3", "--methods", "kd", "--resume", "--out"]
    assert main([*more, str(out)]) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["runs"]["kd"][:2] == results["runs"]["kd"]
    assert len(again["runs"]["kd"]) == 3
    assert (out / "runs/kd-seed0/log.jsonl").read_text() == log
    assert again["step_ms"] is None


@pytest.mark.parametrize(
    ("arguments", "runs", "first"),
    [
        (["--method", "ce", "kd", "kd++", "--seeds", "2"], {"ce": 2, "kd": 2, "kd++": 2}, 0),
        (["--method", "kd", "--seeds", "1"], {"kd": 1}, 0),
        (["--method", "kd", "--seeds", "1", "--seed", "1"], {"kd": 1}, 1),
    ],
)
def test_train_compares_several_methods_or_seeds(
    arguments: list[str],
    runs: dict[str, int],
    first: int,
    compared: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    weights = str(compared[0] / "teacher" / "model.safetensors")
    command = ["train", "--epochs", "2", "--teacher-weights", weights, *arguments]
    assert main([*command, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {method: len(of_seeds) for method, of_seeds in found["runs"].items()} == runs
    for method, of_seeds in found["runs"].items():
        expected = compared[1]["runs"][method][first : first + len(of_seeds)]
        assert [run["sha256"] for run in of_seeds] == [run["sha256"] for run in expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seeds", "3"], (["kd++"], 3)),
        (["--method", "dkd", "ce"], (["dkd", "ce"], 5)),
    ],
)
def test_what_train_compares_by_default(
    arguments: list[str],
    expected: tuple[list[str], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    asked: list[Any] = []

    def compare(
        configs: dict[str, Any], seeds: int, console: Any, step_times: bool
    ) -> dict[str, Any]:
        asked.append((list(configs), seeds))
        assert not step_times
        assert [config.method for config in configs.values()] == list(configs)
        return {"loss_checks": {"ce": {"refused": None}, "kd": {"refused": REFUSED}}}

    monkeypatch.setattr("ndfast.train.compare.comparison.compare", compare)
    assert main(["train", *arguments]) == 1  # for they disagree
    assert asked == [expected]
    assert "of kd with seed 2, at step 3, the loss is off by 1.1e-02" in capsys.readouterr().err


REFUSED = {"seed": 2, "step": 3, "quantity": "loss", "difference": 0.011, "tolerance": 1e-5}


def _runs(**accuracies: list[float]) -> dict[str, list[dict[str, Any]]]:
    return {
        method.replace("pp", "++"): [{"test": {"accuracy": value}} for value in values]
        for method, values in accuracies.items()
    }


def test_pair_differences_by_hand() -> None:
    # Differences 1, 2 and 3: mean 2, standard error 1/√3, and t(0.975, 2) = 4.302653.
    runs = _runs(ce=[0.0] * 3, kd=[1.0, 5.0, 2.0], kdpp=[2.0, 7.0, 5.0], dkdpp=[1.0] * 3)
    (pair,) = pair_differences(runs)
    assert (pair["base"], pair["plus"], pair["metric"]) == ("kd", "kd++", "accuracy")
    assert pair["differences"] == [1.0, 2.0, 3.0]
    assert pair["mean"] == 2.0
    half = 4.302652729911275 / math.sqrt(3)
    assert pair["interval"] == pytest.approx([2 - half, 2 + half])
    # t = 2·√3 with two degrees of freedom: p = 1 − t/√(t² + 2)
    assert pair["p_value"] == pytest.approx(1 - math.sqrt(12 / 14))


def test_one_seed_has_no_interval() -> None:
    (pair,) = pair_differences(_runs(dist=[0.5], distpp=[0.75]))
    assert (pair["mean"], pair["interval"], pair["p_value"]) == (0.25, None, None)
