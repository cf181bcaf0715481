"""COCO's 80 classes and 1,024 features; classes without a box, or without a row."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")
pytest.importorskip("pycocotools", reason="needs pycocotools")

from accelerate import Accelerator
from rich.console import Console
from small_detection import small_config

import ndfast
from ndfast.train.data.batches import Batch
from ndfast.train.detection.class_means import take_class_means
from ndfast.train.detection.coco import read_coco
from ndfast.train.detection.run import build_detector, run
from ndfast.train.detection.shapes import write_shapes

CATEGORIES, ABSENT = 80, (3, 77)
DIM = 1024


def coco_folder(folder: Path, images: int, absent: tuple[int, ...]) -> Path:
    """Drawn shapes in 80 categories, but for those labels none of which is to train on."""
    write_shapes(folder, images, 4)
    present = [label for label in range(CATEGORIES) if label not in absent]
    for part, labels in (("train", present), ("val", range(CATEGORIES))):
        path = folder / "annotations" / f"instances_{part}.json"
        content = json.loads(path.read_text())
        content["categories"] = [
            {"id": label + 1, "name": f"class {label}"} for label in range(CATEGORIES)
        ]
        for number, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = 1 + labels[number % len(labels)]
        # One in the test set, whose mean nobody has.
        content["annotations"][0]["category_id"] = 1 + (labels[0] if part == "train" else ABSENT[0])
        path.write_text(json.dumps(content))
    return folder


def test_a_step_with_classes_that_never_occur(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "coco", 48, ABSENT)
    config = {"data_dir": str(folder), "dim": DIM, "batch_size": 16, "methods": ("kd++",)}
    console = Console(record=True, width=200, file=io.StringIO())
    results = run(small_config(out=str(tmp_path / "run"), **config), console)
    assert "no box of class 3, class 77: no class mean" in console.export_text()
    path = tmp_path / "run" / "class_means.safetensors"
    means = ndfast.load_class_means(path)
    assert means.shape == (CATEGORIES + 1, DIM)
    assert (~means.any(dim=1)).nonzero().flatten().tolist() == [*ABSENT]
    counts = ndfast.load_class_means_metadata(path)["counts"]
    assert [label for label, rows in enumerate(counts) if rows == 0] == [*ABSENT]
    student = results["students"]["kd++"]
    assert student["losses"]["nd"] > 0
    assert 0 < student["cosine"] <= 1
    assert results["teacher"]["cosine"] > 0.5  # of an object without a mean it would be 0
    given = {"teacher_weights": str(tmp_path / "run" / "teacher" / "model.safetensors")}
    given |= {"class_means": str(path), "backend": "reference"}
    again = run(small_config(out=str(tmp_path / "again"), **config, **given), Console(quiet=True))
    assert again["students"]["kd++"]["losses"] == pytest.approx(student["losses"], rel=1e-4)


def test_a_class_that_chance_leaves_out_has_the_mean_of_its_boxes(
    tmp_path: Path, seed: int
) -> None:
    write_shapes(tmp_path, 30, 4)
    data = read_coco(tmp_path)
    # Four rows an image, one of them of an object: of most classes in one image there is none.
    (row, *_) = (
        row for row, target in enumerate(data.train.targets) if len(target.labels.unique()) > 2
    )
    data.train.targets = [data.train.targets[row]]
    data.train.files = [data.train.files[row]]
    target = data.train.targets[0]
    data.train.box_counts = target.labels.bincount(minlength=5)
    for _ in range(5):  # one untrained detector in thirty proposes fewer boxes than four
        teacher = build_detector(small_config(rows=4), "tiny", 5).eval()
        means, counts = take_class_means(Accelerator(cpu=True), teacher, data.train, 8)
        if counts[-1] == 3:
            break
    present = target.labels.unique()
    assert counts[-1] == 3
    assert counts[:-1].nonzero().flatten().tolist() == present.tolist()
    images, _ = data.train.__getitems__(Batch([0], None))
    with torch.no_grad():
        features = teacher.read(teacher.encode(images), [target.boxes]).features
    expected = torch.stack([features[target.labels == label].mean(dim=0) for label in present])
    as_expected = torch.isclose(means[present], expected, atol=1e-6).all(dim=1)
    assert as_expected.sum() >= len(present) - 1  # all but the one that has a row
    assert not means[:-1][counts[:-1] == 0].any()
