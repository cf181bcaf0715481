"""The tools beside the evidence: runs that are kept, added up, and one that may be too long."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate.state import AcceleratorState
from small_runs import events

from ndfast.cli import main

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
Found = dict[str, Any]


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EVIDENCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


collect, full_run = load_tool("collect"), load_tool("full_run")


def collected(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Found:
    monkeypatch.setattr(sys, "argv", ["collect.py", str(folder), str(file), *more])
    collect.main()
    return json.loads(file.read_text(encoding="utf-8"))


def test_seeds_and_methods_of_other_folders_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(out: str, *flags: str) -> Path:
        AcceleratorState._reset_state()
        assert main(["compare", "--epochs", "2", *flags, "--out", str(tmp_path / out)]) == 0
        return tmp_path / out

    weights = ("--teacher-weights", str(tmp_path / "whole" / "teacher" / "model.safetensors"))
    whole = compare("whole", "--methods", "kd", "kd++", "--seeds", "2")
    first = compare("first", *weights, "--methods", "kd", "kd++", "--seeds", "1")
    later = compare("later", *weights, "--methods", "kd++", "--seeds", "1", "--seed", "1")
    last = compare("last", *weights, "--methods", "kd", "--seeds", "1", "--seed", "1")
    file = tmp_path / "found.json"
    expected = collected(whole, tmp_path / "expected.json", monkeypatch, "--curves")
    alone = collected(first, file, monkeypatch, "--curves")
    assert alone["pairs"][0]["interval"] is None
    more = collected(later, file, monkeypatch, "--curves")
    assert more["pairs"] == alone["pairs"]  # of the seed that both methods have
    again = collected(last, file, monkeypatch, "--curves", "--picture", str(tmp_path / "a.png"))
    for found in (expected, again):
        for run in (run for runs in found["runs"].values() for run in runs):
            del run["environment"]
    assert again == expected
    results = json.loads((whole / "results.json").read_text(encoding="utf-8"))
    assert again["pairs"] == results["pairs"]
    assert again["loss_checks"] == results["loss_checks"]
    assert [run["config"]["seed"] for run in again["runs"]["kd"]] == [0, 1]
    assert len(again["runs"]["kd"][0]["epochs"]) == 2
    assert str(tmp_path) not in file.read_text(encoding="utf-8")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def found_of(accuracy: float = 0.5, seed: int = 4, **fields: Any) -> Found:
    """As `collect` finds it, of one run."""
    run = {"config": {"seed": seed}, "test": {"accuracy": accuracy}, "loss_check": None}
    config = {"epochs": 2, "milestones": (1,), **fields}
    return {
        "config": config,
        "losses": {"kd": {"temperature": config.pop("temperature", 4.0)}},
        "teacher_sha256": config.pop("teacher", "ab"),
        "data": {"name": "digits"},
        "backends": {},
        "runs": {"kd": [run]},
    }


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"epochs": 3}, r"epochs: got 3, the file is of 2; expected another file"),
        ({"milestones": (1, 2)}, r"milestones: got \[1, 2\], the file is of \[1\]"),
        ({"teacher": "cd"}, "teacher_sha256: got 'cd', the file is of 'ab'"),
        ({"temperature": 2.0}, r"kd: got {'temperature': 2.0}, the file is of {'temperature': 4.0"),
    ],
)
def test_another_training_is_another_file(other: Found, said: str) -> None:
    before = json.loads(json.dumps(found_of()))
    assert len(collect.merge(before, found_of(seed=5))["runs"]["kd"]) == 2
    with pytest.raises(SystemExit, match=said):
        collect.merge(before, found_of(**other))


def test_the_newer_of_the_same_run_counts() -> None:
    before = json.loads(json.dumps(found_of(0.5)))
    kept = copy.deepcopy(before)
    found = collect.merge(before, found_of(0.6))
    assert found["runs"] == found_of(0.6)["runs"]
    assert before["runs"] == kept["runs"]


def test_methods_without_a_common_seed_are_no_pair() -> None:
    found = found_of(seed=4)
    found["runs"]["kd++"] = found_of(seed=5)["runs"]["kd"]
    assert collect.conclude(found)["pairs"] == []


def test_class_means_that_say_the_same() -> None:
    """Turned, moved and scaled they have the same cosines; in another order they do not."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(30, 8))
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    found = collect.compare_class_means(own, 2 * own @ turn + 3)
    assert found["correlation"] == pytest.approx(1, abs=1e-12)
    assert abs(found["permuted"]) < 0.3
    norms = [np.linalg.norm(own, axis=1).mean(), np.linalg.norm(2 * own @ turn + 3, axis=1).mean()]
    assert found["mean_norms"] == pytest.approx(norms)


@pytest.mark.parametrize(("minutes", "status", "epochs"), [(9, 0, 4), (0, 3, 2)])
def test_a_run_in_full_if_the_minutes_allow(
    minutes: float, status: int, epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AcceleratorState._reset_state()
    flags = ["--method", "ce", "--model", "convnet4", "--epochs", "4", "--out", str(tmp_path)]
    assert full_run.main(minutes, flags) == status
    assert len(events(tmp_path, "epoch")) == epochs
    assert f" s an epoch: the other 2 take 0.0 min of {minutes}" in capsys.readouterr().out
    if epochs != 4:
        assert main(["train", *flags, "--resume"]) == 0
        assert len(events(tmp_path, "epoch")) == 4
