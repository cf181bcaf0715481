"""Drawn shapes: a small set for detectors, in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLASSES = ("circle", "square", "triangle", "cross", "ring")
SIDE = 64  # pixels
_MOST_SHAPES, _EMPTY_SHARE = 4, 0.2
_LEAST_RADIUS, _MOST_RADIUS = 5, 13
_LEAST_CONTRAST, _NOISE = 60, 25  # of 255
_ATTEMPTS = 20


class Drawing(NamedTuple):
    """An image.

    Args:
        pixels: uint8 [SIDE, SIDE, 3].
        boxes: [n, 4] int64, left, top, width, height in pixels, as COCO has them.
        areas: pixels of each shape.
        labels: numbers in `CLASSES`.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    areas: list[int]
    labels: list[int]


def draw(seed: int, index: int) -> Drawing:
    """Up to four shapes of any colour, size and place in noise; none in a fifth of the images.

    No two boxes overlap. Image ``index`` of ``seed`` is always the same.
    """
    rng = np.random.default_rng((seed, index))
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, _MOST_SHAPES + 1))
    ground = rng.uniform(0, 255, 3)
    pixels = np.broadcast_to(ground, (SIDE, SIDE, 3)).copy()
    taken = np.zeros((SIDE, SIDE), bool)
    boxes, areas, labels = [], [], []
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        mask, box = _place(label, taken, rng)
        if box is None:
            continue  # no room is left
        left, top, width, height = box
        taken[top : top + height, left : left + width] = True
        pixels[mask] = _contrasting(ground, rng)
        boxes.append(box)
        areas.append(int(mask.sum()))
        labels.append(label)
    pixels += rng.normal(0, _NOISE, pixels.shape)
    return Drawing(
        pixels.clip(0, 255).round().astype(np.uint8),
        np.array(boxes, dtype=np.int64).reshape(-1, 4),
        areas,
        labels,
    )


def write_shapes(folder: Path, train: int, val: int, seed: int = 0) -> None:
    """Writes a training and a test set of so many images, for `ndfast.train.detection.coco`."""
    first = 0
    for part, count in (("train", train), ("val", val)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        content = _write_images(folder / part, range(first, first + count), seed)
        path = folder / "annotations" / f"instances_{part}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        first += count


def _write_images(folder: Path, indices: range, seed: int) -> dict[str, Any]:
    from PIL import Image

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indices:
        drawing = draw(seed, index)
        name = f"{index:06}.png"
        Image.fromarray(drawing.pixels).save(folder / name)
        images.append({"id": index, "file_name": name, "width": SIDE, "height": SIDE})
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": index,
                "category_id": label + 1,
                "bbox": box,
                "area": area,
                "iscrowd": 0,
            }
            for number, (box, area, label) in enumerate(
                zip(drawing.boxes.tolist(), drawing.areas, drawing.labels, strict=True), start=1
            )
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _place(
    label: int, taken: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int, int, int] | None]:
    """The pixels of a shape and its box; no box if chance finds no free place."""
    for _ in range(_ATTEMPTS):
        radius = rng.uniform(_LEAST_RADIUS, _MOST_RADIUS)
        x, y = rng.uniform(radius, SIDE - radius, 2)
        rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
        mask = _shape(CLASSES[label], (columns - x) / radius, (rows - y) / radius)
        (bottom, right), (top, left) = (
            extreme(np.nonzero(mask), axis=1) for extreme in (np.max, np.min)
        )
        box = (int(left), int(top), int(right - left + 1), int(bottom - top + 1))
        if not taken[top : bottom + 1, left : right + 1].any():
            return mask, box
    return mask, None


def _shape(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a shape is, in coordinates from -1 to 1."""
    square = np.maximum(abs(x), abs(y)) <= 1
    if name == "circle":
        return x**2 + y**2 <= 1
    if name == "square":
        return square
    if name == "triangle":
        return square & (2 * abs(x) <= y + 1)
    if name == "cross":
        return square & (np.minimum(abs(x), abs(y)) <= 0.3)
    return (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.5**2)


def _contrasting(ground: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that differs from the background's in one channel at least."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour - ground).max() >= _LEAST_CONTRAST:
            return colour
