"""What the harness wrote before is read: files of 0.1.0.dev0, as they were, in tests/data.

- digits/: KD++ on digits, `--max-steps 7` of 22, with an average of the weights; its teacher is
  trained to the end
- outputs/: the kept outputs of a teacher on noise, and its weights
- shapes/: `ndfast detect`, killed after the first of two epochs of the student by KD++

Numbers are compared with those that the same version reached, as far as another torch repeats them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")
pytest.importorskip("sklearn", reason="needs the extra [train]")
pytest.importorskip("pycocotools", reason="needs the extra [train]")

from accelerate.state import AcceleratorState
from rich.console import Console
from shown import in_terminal
from small_runs import events, quiet_run

import ndfast
from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.detection.run import run as detect
from ndfast.train.engine.trainer import Trainer
from ndfast.train.recipes import load_recipe
from ndfast.train.report import build_run_table, write_run_page
from ndfast.train.runs.records import read_log
from ndfast.train.runs.run import run

ARCHIVE = Path(__file__).parent / "data" / "runs-0.1.0.dev0.zip"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folders that it holds."""
    shutil.unpack_archive(ARCHIVE, tmp_path)
    AcceleratorState._reset_state()
    return tmp_path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def fields(folder: Path, **changed: Any) -> dict[str, Any]:
    """Of the config of a run; the folder has moved."""
    values = {**read(folder / "config.json"), "out": str(folder), **changed}
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def test_a_run_goes_on(earlier: Path) -> None:
    folder = earlier / "digits"
    before = read_log(folder / "log.jsonl")
    config = TrainConfig(**fields(folder, max_steps=None, resume=True))
    results = run(config, Console(quiet=True))
    log = read_log(folder / "log.jsonl")
    assert log[: len(before) - 1] == before[:-1]  # but for its end
    assert [record["step"] for record in log if record["event"] == "resume"] == [7]
    assert [record["step"] for record in log if record["event"] == "epoch"] == [11, 22]
    assert results["steps"] == results["all_steps"] == 22
    # The sums of the first seven steps are in the checkpoint.
    assert results["epochs"][0]["train"]["loss"] == pytest.approx(2.7525, rel=1e-2)
    assert results["epochs"][1]["train"]["loss"] == pytest.approx(2.1687, rel=5e-2)


def test_a_run_that_is_over_is_not_done_again(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train", None)
    folder = earlier / "digits"
    results = run(TrainConfig(**fields(folder, resume=True)), Console(quiet=True))
    assert results == read(folder / "results.json")


def test_a_run_is_reported(earlier: Path) -> None:
    folder = earlier / "digits" / "teacher"
    results = read(folder / "results.json")
    write_run_page(folder / "report.html", results, read_log(folder / "log.jsonl"))
    accuracy = f"{100 * results['test']['accuracy']:.2f}"
    assert accuracy in in_terminal(build_run_table(results))
    assert accuracy in (folder / "report.html").read_text(encoding="utf-8")


def test_weights_are_evaluated_and_class_means_are_known_as_theirs(earlier: Path) -> None:
    folder, kept = earlier / "digits", read(earlier / "digits" / "results.json")["teacher"]
    means = folder / "class_means.safetensors"
    assert ndfast.load_class_means(means).shape == (10, 16)
    assert ndfast.load_class_means_metadata(means)["teacher"] == "convnet4"
    weights = str(folder / "teacher" / "model.safetensors")
    again = quiet_run(
        earlier / "again",
        teacher="convnet4",
        teacher_weights=weights,
        class_means=str(means),
        max_steps=1,
    )["teacher"]
    assert again.pop("name") == kept.pop("name")
    assert again == pytest.approx(kept, rel=1e-3)


def test_a_config_is_a_recipe(earlier: Path) -> None:
    recipe = load_recipe(str(earlier / "digits" / "config.json"))
    assert {"out", "resume", "overwrite"} | recipe.keys() == read(
        earlier / "digits" / "config.json"
    ).keys()


def test_kept_outputs_serve_a_student(earlier: Path) -> None:
    noise = {"data": "synthetic:64,4,1x8x8", "teacher": "convnet4", "batch_size": 16, "epochs": 1}
    weights = str(earlier / "outputs" / "model.safetensors")
    outputs = {"teacher_outputs": str(earlier / "outputs"), "teacher_weights": weights}
    read_from_files = quiet_run(earlier / "kept", **noise, **outputs)
    computed = quiet_run(earlier / "computed", **noise, teacher_weights=weights)
    train = [found["epochs"][0]["train"] for found in (read_from_files, computed)]
    assert train[0] == pytest.approx(train[1], rel=1e-3)


def test_a_detector_goes_on(earlier: Path) -> None:
    folder = earlier / "shapes"
    teacher = (folder / "teacher" / "log.jsonl").read_bytes()
    results = detect(DetectionConfig(**fields(folder, resume=True)), Console(quiet=True))
    assert (folder / "teacher" / "log.jsonl").read_bytes() == teacher
    student = folder / "runs" / "kd++"
    assert [record["step"] for record in events(student, "resume")] == [3]
    assert [record["step"] for record in events(student, "epoch")] == [3, 6]
    assert results["students"]["kd++"]["losses"]["loss"] == pytest.approx(2.8424, rel=5e-2)
