"""Drawn shapes, sets in COCO's format, and what is measured on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("PIL", reason="needs Pillow")

from accelerate import Accelerator
from small_detection import edit

from ndfast.train.data.batches import Batch
from ndfast.train.detection.coco import CocoDataset, flip, read_coco
from ndfast.train.detection.detector import BoxOutput, Detections, Detector, Target
from ndfast.train.detection.evaluation import average_precision, feature_metrics
from ndfast.train.detection.shapes import CLASSES, SIDE, _shape, draw, write_shapes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn images to train on and ten to test on."""
    folder = tmp_path_factory.mktemp("drawn")
    write_shapes(folder, 40, 10, seed=3)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)


def test_a_drawing_is_of_its_seed_and_number(seed: int) -> None:
    first, again = draw(seed, 5), draw(seed, 5)
    assert (first.pixels == again.pixels).all()
    assert first.labels == again.labels
    for other in (draw(seed, 6), draw(seed + 1, 5)):
        assert (first.pixels != other.pixels).any()


def test_boxes_hold_the_shapes_and_nothing_else(seed: int) -> None:
    counts = []
    for index in range(100):
        drawing = draw(seed, index)
        counts.append(len(drawing.labels))
        ground = np.ones((SIDE, SIDE), bool)
        for left, top, width, height in drawing.boxes:
            inside = ground[top : top + height, left : left + width]
            assert inside.shape == (height, width)
            assert inside.all()  # boxes do not overlap
            inside[:] = False
        # Noise alone is left outside of the boxes: 25 of 255 in each channel, less where clipped.
        assert drawing.pixels[ground].std(axis=0).max() < 27
        for (_, _, width, height), area in zip(drawing.boxes, drawing.areas, strict=True):
            assert 0.2 * width * height < area <= width * height
    assert 5 <= counts.count(0) <= 40
    assert max(counts) == 4


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("circle", [(0, 0), (0.7, 0.7), (-1, 0)], [(0.8, 0.8), (1.01, 0)]),
        ("square", [(0, 0), (0.99, -0.99)], [(1.01, 0), (0, -1.01)]),
        ("triangle", [(0, 0), (0, -0.9), (0.9, 0.99)], [(0.5, -0.5), (0, 1.01), (-0.9, 0)]),
        ("cross", [(0, 0.9), (-0.9, 0.2)], [(0.5, 0.5), (0, 1.01)]),
        ("ring", [(0.9, 0), (-0.4, 0.4)], [(0, 0), (0.3, 0.3), (0.8, 0.8)]),
    ],
)
def test_shapes_by_their_points(name: str, inside: Any, outside: Any) -> None:
    assert name in CLASSES
    for points, expected in ((inside, True), (outside, False)):
        x, y = np.array(points, dtype=float).T
        assert (_shape(name, x, y) == expected).all()


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    data = read_coco(folder)
    assert (len(data.train), len(data.test), data.num_classes) == (40, 10, len(CLASSES))
    images, targets = data.train.__getitems__(Batch([*range(40)], None))
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        drawing = draw(3, index)
        assert (image.dtype, target.boxes.dtype) == (torch.float32, torch.float32)
        assert ((image * 255).round().permute(1, 2, 0).numpy() == drawing.pixels).all()
        assert target.labels.tolist() == drawing.labels
        boxes = target.boxes.clone()
        boxes[:, 2:] -= boxes[:, :2]
        assert boxes.tolist() == drawing.boxes.tolist()
    assert min(len(target.labels) for target in targets) == 0
    (image,), _ = data.test.__getitems__(Batch([0], None))
    assert ((image * 255).round().permute(1, 2, 0).numpy() == draw(3, 40).pixels).all()


def test_odd_views_flip_images_with_their_boxes(folder: Path) -> None:
    train = read_coco(folder).train
    plain = train.__getitems__(Batch([*range(40)], None))
    flipped = train.__getitems__(Batch([*range(40)], [*range(2**62, 2**62 + 40)]))
    for row, (image, target, found, found_target) in enumerate(zip(*plain, *flipped, strict=True)):
        if row % 2:
            image, target = flip(image, target)
        assert torch.equal(found, image)
        assert torch.equal(found_target.boxes, target.boxes)
    target = Target(torch.tensor([[1.0, 2, 5, 4]]), torch.tensor([0]))
    image, mirrored = flip(torch.arange(8.0).expand(3, 5, 8), target)
    assert image[0, 0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert mirrored.boxes.tolist() == [[3, 2, 7, 4]]


def test_cocos_own_layout_sparse_categories_crowds_and_empty_boxes(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["id"] *= 10
        for annotation in content["annotations"]:
            annotation["category_id"] *= 10
            del annotation["id"], annotation["area"], annotation["iscrowd"]
        first = content["annotations"][0]
        content["annotations"] += [
            {**first, "iscrowd": 1, "bbox": [0, 0, 60, 60]},
            {**first, "bbox": [3, 3, 0, 5]},
        ]

    before = read_coco(folder).train.targets
    for part in ("train", "val"):
        edit(folder, change, part)
        (folder / part).rename(folder / f"{part}2017")
        path = folder / "annotations" / f"instances_{part}.json"
        path.rename(path.with_stem(f"instances_{part}2017"))
    data = read_coco(folder)
    for target, expected in zip(data.train.targets, before, strict=True):
        assert torch.equal(target.boxes, expected.boxes)
        assert torch.equal(target.labels, expected.labels)
    assert data.train.category_ids == [10, 20, 30, 40, 50]
    labels = [label for target in before for label in target.labels.tolist()]
    assert data.train.box_counts.tolist() == [labels.count(label) for label in range(5)]
    *_, crowd, _ = data.train.ground_truth["annotations"]
    assert (crowd["iscrowd"], crowd["area"]) == (1, 3600)
    assert min(annotation["id"] for annotation in data.train.ground_truth["annotations"]) == 1


def test_the_name_is_of_the_annotations(folder: Path) -> None:
    name = read_coco(folder).name
    assert read_coco(folder).name == name
    edit(folder, lambda content: content["annotations"].pop())
    assert read_coco(folder).name != name


def test_boxes_are_cut_to_their_image(folder: Path) -> None:
    boxes = [[50, 40, 100, 10], [-9, -9, 20, 30], [70, 70, 9, 9], [9, 9, -3, -3], [9, 9, 1e-5, 9]]
    first: dict[str, Any] = {"image_id": 0, "category_id": 2}
    edit(folder, lambda content: content.update(annotations=[first | {"bbox": b} for b in boxes]))
    train = read_coco(folder).train
    assert train.targets[0].boxes.tolist() == [[50, 40, 64, 50], [0, 0, 11, 21]]
    assert train.targets[0].labels.tolist() == [1, 1]
    assert train.box_counts.tolist() == [0, 2, 0, 0, 0]
    # What pycocotools measures by is as it was.
    assert [found["bbox"] for found in train.ground_truth["annotations"]] == boxes


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_transparent_images_are_read_in_three_channels(folder: Path, mode: str) -> None:
    from PIL import Image

    for file in (folder / "train").iterdir():
        Image.open(file).convert(mode).save(file)
    images, _ = read_coco(folder).train.__getitems__(Batch([0, 1], None))
    for index, image in enumerate(images):
        expected = draw(3, index).pixels.astype(np.float32)
        if mode == "L":  # ITU-R 601
            grey = (expected @ [0.299, 0.587, 0.114]).round()
            expected = np.repeat(grey[:, :, None], 3, axis=2)
        found = 255 * image.permute(1, 2, 0).numpy()
        assert found.shape == (SIDE, SIDE, 3)
        assert abs(found - expected).max() <= (1.01 if mode == "L" else 1e-4)


class Oracle(Detector):
    """Says what it is given, whatever the image; its features are its boxes."""

    def __init__(self, answers: list[Detections]) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.answers = answers

    def detect(self, images: list[Tensor]) -> list[Detections]:
        answers, self.answers = self.answers[: len(images)], self.answers[len(images) :]
        return answers

    def encode(self, images: list[Tensor]) -> None:
        return None

    def read(self, maps: None, boxes: list[Tensor]) -> BoxOutput:
        features = torch.cat(boxes)
        return BoxOutput(features, features, features)

    def sample(self, maps: Any, targets: Any) -> Any:
        raise AssertionError

    losses = sample


def precision(dataset: CocoDataset, answer: Callable[[Target], Detections]) -> dict[str, float]:
    oracle = Oracle([answer(target) for target in dataset.targets])
    return average_precision(Accelerator(cpu=True), oracle, dataset, 5)


def test_precision_of_answers_that_are_known(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    dataset = read_coco(folder).train  # more than a batch
    ones = [torch.ones(len(target.labels)) for target in dataset.targets]

    def right(target: Target) -> Detections:
        return Detections(target.boxes, target.labels, torch.ones(len(target.labels)))

    def half_as_high(target: Target) -> Detections:  # an overlap of 0.6
        boxes = target.boxes.clone()
        boxes[:, 3] -= 0.4 * (boxes[:, 3] - boxes[:, 1])
        return Detections(boxes, target.labels, torch.ones(len(target.labels)))

    def another_class(target: Target) -> Detections:
        return right(Target(target.boxes, (target.labels + 1) % 5))

    def nothing(target: Target) -> Detections:
        return right(Target(target.boxes[:0], target.labels[:0]))

    assert sum(map(len, ones)) > 50
    assert precision(dataset, right) == pytest.approx({"map": 1, "map50": 1})
    found = precision(dataset, half_as_high)
    # Overlaps of 0.5 and 0.55 of the ten from 0.5 to 0.95; 0.6 itself is up to rounding.
    assert found["map50"] == pytest.approx(1)
    assert 0.2 - 1e-6 <= found["map"] <= 0.3 + 1e-6
    assert precision(dataset, another_class)["map50"] < 0.05
    assert precision(dataset, nothing) == {"map": 0, "map50": 0}
    assert capsys.readouterr().out == ""


def test_feature_metrics_are_those_of_the_objects(folder: Path) -> None:
    dataset = read_coco(folder).train
    boxes = torch.cat([target.boxes for target in dataset.targets])
    labels = torch.cat([target.labels for target in dataset.targets])
    means = torch.rand(6, 4)
    means[2] = 0  # a class that has none
    found = feature_metrics(Accelerator(cpu=True), Oracle([]), dataset, 5, means)
    assert found["norm"] == pytest.approx(boxes.norm(dim=1).mean().item(), rel=1e-5)
    centres = means[labels]
    boxes, centres = boxes[labels != 2], centres[labels != 2]
    cosines = (boxes * centres).sum(1) / (boxes.norm(dim=1) * centres.norm(dim=1))
    assert found["cosine"] == pytest.approx(cosines.mean().item(), rel=1e-5)
