"""Detectors, batches and configs that take a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.detection.detector import Target
from ndfast.train.detection.run import build_detector
from ndfast.train.detection.small_detector import SmallDetector

K, D = 5, 16


def small_config(**fields: Any) -> DetectionConfig:
    return DetectionConfig(
        **{"images": 18, "dim": D, "rows": 24, "epochs": 1, "teacher": "tiny", **fields}
    )


def detector(**fields: Any) -> SmallDetector:
    found = build_detector(small_config(**fields), "tiny", K)
    assert isinstance(found, SmallDetector)
    return found


def teacher() -> SmallDetector:
    return detector().eval().requires_grad_(False)


def batch(*objects: int) -> tuple[list[Tensor], list[Target]]:
    """Images of noise with so many objects in each."""
    targets = []
    for count in objects:
        corner = torch.rand(count, 2) * 40
        boxes = torch.cat((corner, corner + 8 + 12 * torch.rand(count, 2)), dim=1)
        targets.append(Target(boxes, torch.randint(K, (count,))))
    return [torch.rand(3, 64, 64) for _ in objects], targets


def edit(folder: Path, change: Callable[[dict[str, Any]], object], part: str = "train") -> None:
    """Changes the annotations of a set in COCO's format."""
    path = folder / "annotations" / f"instances_{part}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
