"""`ndfast detect` in which each process writes down what it has, and the second meets a NaN.

Into OUT/rank-R.json goes, for each training, teacher before student, "weights" (their SHA-256) and
"skipped"; "rows", of each class, that the process itself adds to the class means; and "images"
that it itself tests the teacher and the student on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ndfast
from ndfast.cli import main
from ndfast.train.detection.detector import Detections
from ndfast.train.detection.small_detector import SmallDetector
from ndfast.train.detection.trainer import DetectionTrainer
from ndfast.train.models.weights import weights_digest

POISONED = 5  # the student's step
train, step, detect, all_reduce = (
    DetectionTrainer.train,
    DetectionTrainer.step,
    SmallDetector.detect,
    ndfast.ClassMeans.all_reduce,
)
found: dict[str, Any] = {"trainings": [], "images": 0}


def train_and_note(trainer: DetectionTrainer, *args: Any) -> None:
    train(trainer, *args)
    weights = weights_digest(trainer.accelerator.unwrap_model(trainer.model).student)
    found["trainings"].append({"weights": weights, "skipped": trainer.position.skipped})


def poisoned(trainer: DetectionTrainer, batches: Any) -> None:
    student = trainer.teacher is not None and trainer.accelerator.process_index == 1
    if student and trainer.position.step == POISONED:
        [(images, targets)] = batches
        batches = [([torch.full_like(image, float("nan")) for image in images], targets)]
    step(trainer, batches)


def detect_and_note(detector: SmallDetector, images: list[Tensor]) -> list[Detections]:
    found["images"] += len(images)
    return detect(detector, images)


def note_and_reduce(means: ndfast.ClassMeans) -> None:
    found.setdefault("rows", means.counts.tolist())  # later ones have the other's as well
    all_reduce(means)


if __name__ == "__main__":
    DetectionTrainer.train, DetectionTrainer.step = train_and_note, poisoned
    SmallDetector.detect = detect_and_note
    ndfast.ClassMeans.all_reduce = note_and_reduce
    status = main(sys.argv[1:])
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    sys.exit(status)
