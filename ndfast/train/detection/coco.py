"""Sets of images with boxes, in COCO's format."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ndfast.files import expand_home
from ndfast.train.data.batches import Batch
from ndfast.train.data.folders import read_image
from ndfast.train.detection import boxes as box_math
from ndfast.train.detection.detector import Target
from ndfast.train.errors import ConfigError


class CocoDataset:
    """Images that are read from disk batch by batch, and the objects in them.

    Crowds, and boxes without area in the image, are nothing to train on; evaluation does know of
    crowds, and of boxes as they are.

    Args:
        folder: of the images.
        content: of the file of annotations.

    Attributes:
        sizes: (H, W) of each image.
        category_ids: COCO's number of each class, in order.
        class_names: likewise.
        box_counts: the boxes of each class, int64 [K]; crowds and empty ones do not count.
        ground_truth: what pycocotools takes: the content with every field that it reads.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: the content is not in COCO's format.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = _distinct("category", categories)
        self.class_names = [str(category["name"]) for category in categories]
        images = content["images"]
        self.image_ids = _distinct("image", images)
        self.files = [folder / image["file_name"] for image in images]
        self.sizes = [(int(image["height"]), int(image["width"])) for image in images]
        annotations = [
            _annotation(number, found)
            for number, found in enumerate(content["annotations"], start=1)
        ]
        self.ground_truth = {
            "images": [{"id": image_id} for image_id in self.image_ids],
            "annotations": annotations,
            "categories": [{"id": category_id} for category_id in self.category_ids],
        }
        self.targets = self._targets(annotations)
        labels = torch.cat([target.labels for target in self.targets])
        self.box_counts = labels.bincount(minlength=len(self.class_names))

    def _targets(self, annotations: list[dict[str, Any]]) -> list[Target]:
        """The objects in each image, the part of them that is in it."""
        classes = {category_id: label for label, category_id in enumerate(self.category_ids)}
        rows = {image_id: row for row, image_id in enumerate(self.image_ids)}
        boxes: list[list[list[float]]] = [[] for _ in rows]
        labels: list[list[int]] = [[] for _ in rows]
        for annotation in annotations:
            for name, known in (("category_id", classes), ("image_id", rows)):
                if annotation[name] not in known:
                    raise ValueError(
                        f"annotation {annotation['id']} has the {name} {annotation[name]!r}, which "
                        "the file does not list"
                    )
            if annotation["iscrowd"]:
                continue
            row = rows[annotation["image_id"]]
            left, top, width, height = annotation["bbox"]
            boxes[row].append([left, top, left + width, top + height])
            labels[row].append(classes[annotation["category_id"]])
        targets = []
        for size, own_boxes, own_labels in zip(self.sizes, boxes, labels, strict=True):
            clipped = box_math.clip(torch.tensor(own_boxes).reshape(-1, 4), *size)
            real = box_math.has_area(clipped)
            own = torch.tensor(own_labels, dtype=torch.int64)
            targets.append(Target(clipped[real], own[real]))
        return targets

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, batch: Batch) -> tuple[list[Tensor], list[Target]]:
        """Images float32 [3, H, W] from 0 to 1 and the objects in them; those of odd views flipped.

        An image with an EXIF orientation is turned upright, as detectron2 has it: boxes and sizes
        are of what an annotator saw.

        Raises:
            ConfigError: an image cannot be read, or has another size than the annotations say.
        """
        images, targets = [], []
        for row, view in zip(batch.indices, batch.views or [0] * len(batch.indices), strict=True):
            file = str(self.files[row])
            pixels = torch.from_numpy(np.array(read_image(file, upright=True)))
            size, expected = tuple(pixels.shape[:2]), self.sizes[row]
            if size != expected:
                hint = "; they are taken for what EXIF's orientation turns upright"
                raise ConfigError(
                    f"data_dir: {file} is {size[1]} pixels wide and {size[0]} high; its "
                    f"annotations are for {expected[1]} and {expected[0]}"
                    f"{hint if size == expected[::-1] else ''}"
                )
            image, target = pixels.permute(2, 0, 1).float() / 255, self.targets[row]
            if view % 2:
                image, target = flip(image, target)
            images.append(image)
            targets.append(target)
        return images, targets


class DetectionData(NamedTuple):
    """What a run trains and tests on.

    Args:
        train: need not have a box of every class, being a part of a larger set for one.
        test: of the same classes.
        num_classes: K, without background.
        name: tells other data apart, so that class means can name theirs.
    """

    train: CocoDataset
    test: CocoDataset
    num_classes: int
    name: str


def read_coco(folder: Path) -> DetectionData:
    """A training and a test set.

    Args:
        folder: holds annotations/instances_train.json, annotations/instances_val.json and the
            images in train/ and val/; or all with a year, as COCO has them: instances_train2017.

    Raises:
        ConfigError: a file or an image is missing, a file is not in COCO's format or has no box at
            all, or the two have other classes.
    """
    folder = expand_home(folder)
    train, train_digest = _read(folder, "train")
    test, _ = _read(folder, "val")
    if train.class_names != test.class_names:
        raise ConfigError(
            f"data_dir: the training set of {folder} has the classes "
            f"{', '.join(train.class_names)}, the test set {', '.join(test.class_names)}; they "
            "take the same"
        )
    num_classes = len(train.class_names)
    return DetectionData(train, test, num_classes, f"coco {train_digest[:12]}")


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """The mirror image [3, H, W], left to right, and its objects."""
    left, top, right, bottom = target.boxes.unbind(dim=1)
    width = image.shape[2]
    boxes = torch.stack((width - right, top, width - left, bottom), dim=1)
    return image.flip(2), Target(boxes, target.labels)


def _read(folder: Path, part: str) -> tuple[CocoDataset, str]:
    """A part of the set, and the SHA-256 of its annotations."""
    files = sorted((folder / "annotations").glob(f"instances_{part}*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ConfigError(
            f"data_dir: found {found} in {folder / 'annotations'}; expected one instances_{part}"
            f".json there, and the images in {folder / part}"
        )
    try:
        data = files[0].read_bytes()
        dataset = CocoDataset(folder / files[0].stem.removeprefix("instances_"), json.loads(data))
    except OSError as error:
        raise ConfigError(f"data_dir: cannot read {files[0]}: {error.strerror}") from error
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ConfigError(
            f"data_dir: {files[0]} is not in COCO's format ({type(error).__name__}: {error})"
        ) from error
    if not dataset.box_counts.any():
        raise ConfigError(f"data_dir: found no box in {files[0]}; expected at least one")
    missing = _missing(dataset.files)
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ConfigError(f"data_dir: {files[0]} names {missing[0]}{more}, not to be found")
    return dataset, hashlib.sha256(data).hexdigest()


def _missing(files: list[Path]) -> list[Path]:
    """Those that are not there; now and not when their turn comes, after hours."""
    folders = {file.parent for file in files}
    listed = {folder: set(os.listdir(folder)) for folder in folders if folder.is_dir()}
    return [file for file in files if file.name not in listed.get(file.parent, ())]


def _distinct(kind: str, items: list[dict[str, Any]]) -> list[int]:
    """The items' ids."""
    if not items:
        raise ValueError(f"there is no {kind}")
    ids = [int(item["id"]) for item in items]
    for number, count in Counter(ids).items():
        if count > 1:
            raise ValueError(f"{count} of kind {kind} have the id {number}")
    return ids


def _annotation(number: int, found: dict[str, Any]) -> dict[str, Any]:
    """What is read of an annotation; pycocotools takes the number 0 for none."""
    left, top, width, height = map(float, found["bbox"])
    area = float(found.get("area", width * height))
    if not all(map(math.isfinite, (left, top, width, height, area))):
        raise ValueError(f"annotation {number} has NaN or infinity in bbox or area")
    return {
        "id": number,
        "image_id": found["image_id"],
        "category_id": found["category_id"],
        "bbox": [left, top, width, height],
        "area": area,
        "iscrowd": int(found.get("iscrowd", 0)),
    }
