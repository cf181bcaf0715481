"""A teacher's class means, the training and the command `ndfast detect`."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from small_detection import D, K, detector, small_config
from torch import Tensor

import ndfast
from ndfast.train.data.batches import Batch
from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.class_means import take_class_means
from ndfast.train.detection.coco import read_coco
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.detection.run import run
from ndfast.train.detection.shapes import write_shapes
from ndfast.train.detection.small_detector import SmallDetector
from ndfast.train.detection.trainer import DetectionTrainer
from ndfast.train.engine.position import Silent
from ndfast.train.errors import ConfigError
from ndfast.train.models.weights import load_weights
from ndfast.train.report import build_detection_table

pytestmark = pytest.mark.pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of drawn shapes."""
    write_shapes(tmp_path / "shapes", 16, 4)
    return tmp_path / "shapes"


def fit(distiller: DetectionDistiller, teacher: Any, data: Any, config: Any) -> None:
    trainer = DetectionTrainer(Accelerator(cpu=True), config, data, distiller, teacher)
    trainer.train(Silent(), Silent(), lambda epoch_ends: None)


def all_rows(model: SmallDetector, dataset: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels of every proposal and object, in batches of ``size`` images."""
    for start in range(0, len(dataset), size):
        images, targets = dataset.__getitems__(
            Batch([*range(start, min(start + size, len(dataset)))], None)
        )
        maps = model.encode(images)
        proposals, _ = model.proposals(maps.features, maps.sizes, None)
        boxes = [
            torch.cat((own, target.boxes)) for own, target in zip(proposals, targets, strict=True)
        ]
        for own, target in zip(boxes, targets, strict=True):
            nearest, overlap = box_math.match(own, target.boxes)
            labels = torch.full_like(nearest, K)
            near = overlap >= 0.5
            labels[near] = target.labels[nearest[near]]
            alone = [other if other is own else other[:0] for other in boxes]
            yield model.read(maps, alone).features, labels


def test_class_means_are_those_of_the_teachers_rows(folder: Path, seed: int) -> None:
    data = read_coco(folder)
    model = detector(rows=1000).eval()  # all proposals are rows
    for batch_size in (1, 5):
        with torch.no_grad():
            found = [*all_rows(model, data.train, batch_size)]
        features, labels = map(torch.cat, zip(*found, strict=True))
        expected = torch.stack([features[labels == k].double().mean(dim=0) for k in range(K + 1)])
        assert (labels == K).sum() > len(labels) / 2  # background is the last
        means, counts = take_class_means(Accelerator(cpu=True), model, data.train, batch_size)
        assert counts.tolist() == labels.bincount(minlength=K + 1).tolist()
        torch.testing.assert_close(means.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_that_is_larger_than_the_set(folder: Path) -> None:
    config = small_config(batch_size=17)
    distiller = DetectionDistiller(detector(), "ce", config)
    with pytest.raises(ConfigError, match="batch_size: got 17; expected at most 16"):
        fit(distiller, None, read_coco(folder), config)


def quiet(out: Path, **fields: Any) -> dict[str, Any]:
    return run(small_config(out=str(out), **fields), Console(quiet=True))


def test_a_run_and_what_goes_on_from_its_files(tmp_path: Path) -> None:
    first = quiet(tmp_path / "first")
    out = tmp_path / "first"
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(first))
    assert set(first["students"]) == {"ce", "kd", "kd++"}
    assert first["skipped"] == dict.fromkeys(("teacher", "ce", "kd", "kd++"), 0)
    assert (first["data"]["train"], first["data"]["test"]) == (18, 6)
    metrics = {"map", "map50", "norm", "cosine"}
    assert set(first["teacher"]) == metrics
    for method, found in first["students"].items():
        assert set(found) == {*metrics, "losses"}
        assert ("nd" in found["losses"]) == (method == "kd++")
        assert ("kd" in found["losses"]) == (method != "ce")
        load_weights(detector(), out / "runs" / method / "model.safetensors")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(build_detection_table(first))
    text = console.export_text()
    assert all(name in text for name in ("teacher", "kd++", f"{first['teacher']['cosine']:.3f}"))
    assert "skipped" not in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 2
    assert all(f"{100 * found['map50']:.2f} %" in page for found in first["students"].values())
    means = ndfast.load_class_means(out / "class_means.safetensors")
    assert means.shape == (K + 1, D)
    given = {
        "data_dir": str(out / "shapes"),
        "teacher_weights": str(out / "teacher" / "model.safetensors"),
        "class_means": str(out / "class_means.safetensors"),
        "methods": ("kd++",),
    }
    again = quiet(tmp_path / "again", **given)
    assert set(again["skipped"]) == {"kd++"}
    assert again["teacher"] == first["teacher"]
    assert again["students"]["kd++"] == first["students"]["kd++"]
    reference = quiet(tmp_path / "reference", **given, backend="reference")["students"]["kd++"]
    assert reference["losses"] == pytest.approx(again["students"]["kd++"]["losses"], rel=1e-4)

    def refused(**fields: Any) -> str:
        with pytest.raises(ConfigError) as raised:
            quiet(tmp_path / "refused", **{**given, **fields})
        assert "\n" not in str(raised.value)
        return str(raised.value)

    with pytest.raises(ConfigError, match="first holds a run; expected --resume to go on with it"):
        quiet(out)
    file = given["class_means"]
    assert f"class_means: {file} is of another teacher (tiny on coco" in refused(
        teacher_weights=str(out / "runs" / "kd" / "model.safetensors")
    )
    write_shapes(tmp_path / "other", 18, 4, seed=1)
    assert f"class_means: {file} is of another data set" in refused(
        data_dir=str(tmp_path / "other")
    )
    untrained = {"teacher_weights": None, "class_means": "nowhere.npz"}
    assert "class_means: cannot read nowhere.npz" in refused(**untrained)
    with pytest.raises(ConfigError, match="backend: "):
        quiet(tmp_path / "refused", backend="cuda" if not torch.cuda.is_available() else "native")
    assert "class_means: cannot read teacher" in refused(**untrained | {"class_means": "teacher"})
    assert "teacher_weights: cannot read pretrained" in refused(teacher_weights="pretrained")
    for shape in ((81, D), (K + 1, 1024)):
        path = tmp_path / "other.npz"
        ndfast.save_class_means(path, torch.rand(shape))
        expected = f"is [{shape[0]}, {shape[1]}]; teacher and data take [6, 16]"
        assert expected in refused(**untrained | {"class_means": str(path)})
    assert not (tmp_path / "refused" / "teacher").exists()  # told before it is trained


def test_the_learning_rate_follows_its_schedule(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: Any, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    config = small_config(batch_size=8, epochs=3, lr=0.1, optimizer="sgd")
    distiller = DetectionDistiller(detector(), "ce", config)
    fit(distiller, None, read_coco(folder), config)
    # Two steps of growth, and half a cosine over four.
    cosine = [0.05 * (1 + math.cos(math.pi * part / 4)) for part in range(4)]
    assert rates == pytest.approx([0.05, 0.1, *cosine])


def test_the_seed_decides_everything(folder: Path) -> None:
    def trained(seed: int) -> Tensor:
        set_seed(seed)
        config = small_config(batch_size=4, seed=seed)
        distiller = DetectionDistiller(detector(), "ce", config)
        fit(distiller, None, read_coco(folder), config)
        return torch.cat([value.flatten() for value in distiller.parameters()])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
