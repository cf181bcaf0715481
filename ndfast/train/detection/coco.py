"""Sets of images with boxes, in COCO's format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ndfast.train.data.batches import Batch
from ndfast.train.data.folders import read_image
from ndfast.train.detection.detector import Target
from ndfast.train.errors import ConfigError


class CocoDataset:
    """Images that are read from disk batch by batch, and the objects in them.

    Crowds and boxes without area are nothing to train on; evaluation does know of crowds.

    Args:
        folder: of the images.
        content: of the file of annotations.

    Attributes:
        category_ids: COCO's number of each class, in order.
        class_names: likewise.
        box_counts: the boxes of each class, int64 [K]; crowds and empty ones do not count.
        ground_truth: what pycocotools takes: the content with every field that it reads.

    Raises:
        KeyError, TypeError, ValueError: the content is not in COCO's format.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [int(category["id"]) for category in categories]
        self.class_names = [str(category["name"]) for category in categories]
        images = content["images"]
        self.image_ids = [int(image["id"]) for image in images]
        self.files = [folder / image["file_name"] for image in images]
        objects: dict[int, list[tuple[list[float], int]]] = {i: [] for i in self.image_ids}
        annotations = []
        for number, found in enumerate(content["annotations"], start=1):
            left, top, width, height = map(float, found["bbox"])
            annotation = {
                "id": number,  # pycocotools takes 0 for no annotation
                "image_id": found["image_id"],
                "category_id": found["category_id"],
                "bbox": [left, top, width, height],
                "area": found.get("area", width * height),
                "iscrowd": found.get("iscrowd", 0),
            }
            annotations.append(annotation)
            label = self.category_ids.index(annotation["category_id"])
            own = objects[annotation["image_id"]]
            if not annotation["iscrowd"] and width > 0 and height > 0:
                own.append(([left, top, left + width, top + height], label))
        self.ground_truth = {
            "images": [{"id": image_id} for image_id in self.image_ids],
            "annotations": annotations,
            "categories": [{"id": category_id} for category_id in self.category_ids],
        }
        self.targets = [
            Target(
                torch.tensor([box for box, _ in own]).reshape(-1, 4),
                torch.tensor([label for _, label in own], dtype=torch.int64),
            )
            for own in objects.values()
        ]
        labels = torch.cat([target.labels for target in self.targets])
        self.box_counts = labels.bincount(minlength=len(self.class_names))

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, batch: Batch) -> tuple[list[Tensor], list[Target]]:
        """Images float32 [3, H, W] from 0 to 1 and the objects in them; a seed flips half of them.

        Raises:
            ConfigError: an image cannot be read.
        """
        rng = np.random.default_rng(batch.seed)
        images, targets = [], []
        for row in batch.indices:
            pixels = torch.from_numpy(np.array(read_image(str(self.files[row]))))
            image, target = pixels.permute(2, 0, 1).float() / 255, self.targets[row]
            if batch.seed is not None and rng.random() < 0.5:
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
        ConfigError: a file is missing or not in COCO's format, has no box at all, or the two have
            other classes.
    """
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
            f"data_dir: found {found} in {folder / 'annotations'}; it takes one instances_{part}"
            f".json there, and the images in {folder / part}"
        )
    try:
        data = files[0].read_bytes()
        dataset = CocoDataset(folder / files[0].stem.removeprefix("instances_"), json.loads(data))
    except OSError as error:
        raise ConfigError(f"data_dir: cannot read {files[0]}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"data_dir: {files[0]} is not in COCO's format ({type(error).__name__}: {error})"
        ) from error
    if not dataset.box_counts.any():
        raise ConfigError(f"data_dir: found no box in {files[0]}; it takes at least one")
    return dataset, hashlib.sha256(data).hexdigest()
