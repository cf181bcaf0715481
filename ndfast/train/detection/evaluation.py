"""What a detector reaches on a test set, whose images the processes share."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ndfast.train.detection.batches import evaluation_batches
from ndfast.train.detection.coco import CocoDataset
from ndfast.train.detection.detector import Detector


@torch.no_grad()
def average_precision(
    accelerator: Accelerator, detector: Detector, dataset: CocoDataset, batch_size: int
) -> dict[str, float]:
    """COCO's average precision, by pycocotools; every process must call this.

    Returns:
        "map", the mean over overlaps of 0.5 to 0.95, and "map50"; both from 0 to 1.
    """
    found = []
    for rows, images, _ in evaluation_batches(
        accelerator, dataset, range(len(dataset)), batch_size
    ):
        for row, detections in zip(rows, detector.detect(images), strict=True):
            boxes = detections.boxes.clone()
            boxes[:, 2:] -= boxes[:, :2]  # COCO's are left, top, width, height
            found += [
                {
                    "image_id": dataset.image_ids[row],
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "score": score,
                }
                for box, label, score in zip(
                    boxes.tolist(),
                    detections.labels.tolist(),
                    detections.scores.tolist(),
                    strict=True,
                )
            ]
    found = gather_object(found)  # pycocotools puts the images in order
    if not found:  # pycocotools takes no empty list
        return {"map": 0.0, "map50": 0.0}
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset.ground_truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map": float(evaluation.stats[0]), "map50": float(evaluation.stats[1])}


@torch.no_grad()
def feature_metrics(
    accelerator: Accelerator,
    detector: Detector,
    dataset: CocoDataset,
    batch_size: int,
    class_means: Tensor,
) -> dict[str, float]:
    """The box features of the objects themselves, whatever the detector proposes.

    Every process must call this. A class that has no mean has 0 in ``class_means`` [K + 1, D].

    Returns:
        The means over all objects: "norm" of the feature (L2), and its "cosine" to the class mean,
        over those whose class has one; NaN without any.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for _, images, targets in evaluation_batches(
        accelerator, dataset, range(len(dataset)), batch_size
    ):
        boxes = [target.boxes for target in targets]
        features = detector.read(detector.encode(images), boxes).features.float()
        centres = class_means[torch.cat([target.labels for target in targets])]
        known = centres.any(dim=1)
        rows = [
            torch.ones_like(known),
            features.norm(dim=1),
            known,
            torch.where(known, F.cosine_similarity(features, centres), 0.0),
        ]
        sums += torch.stack([row.double() for row in rows]).sum(dim=1)
    objects, norm, with_centre, cosine = accelerator.reduce(sums, "sum")
    return {"norm": (norm / objects).item(), "cosine": (cosine / with_centre).item()}
