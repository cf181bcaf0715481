"""What a detector reaches on a test set."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ndfast.train.data.batches import Batch
from ndfast.train.detection.coco import CocoDataset
from ndfast.train.detection.detector import Detector, Target
from ndfast.train.detection.loop import move

_BATCH = 16


@torch.no_grad()
def average_precision(detector: Detector, dataset: CocoDataset) -> dict[str, float]:
    """COCO's average precision, by pycocotools.

    Args:
        detector: in evaluation mode.
        dataset: the test set.

    Returns:
        "map", the mean over overlaps of 0.5 to 0.95, and "map50"; both from 0 to 1.
    """
    found = []
    for rows, images, _ in _batches(detector, dataset):
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
    detector: Detector, dataset: CocoDataset, class_means: Tensor
) -> dict[str, float]:
    """The box features of the objects themselves, whatever the detector proposes.

    Args:
        detector: in evaluation mode.
        dataset: the test set.
        class_means: [K + 1, D]; 0 for a class that has none.

    Returns:
        The means over all objects: "norm" of the feature (L2), and its "cosine" to the class mean,
        over those whose class has one; NaN without any.
    """
    norms, cosines = [], []
    for _, images, targets in _batches(detector, dataset):
        boxes = [target.boxes for target in targets]
        features = detector.read(detector.encode(images), boxes).features.float()
        centres = class_means[torch.cat([target.labels for target in targets])]
        norms.append(features.norm(dim=1))
        cosines.append(F.cosine_similarity(features, centres)[centres.any(dim=1)])
    return {"norm": torch.cat(norms).mean().item(), "cosine": torch.cat(cosines).mean().item()}


def _batches(
    detector: Detector, dataset: CocoDataset
) -> Iterator[tuple[list[int], list[Tensor], list[Target]]]:
    device = next(detector.parameters()).device
    for start in range(0, len(dataset), _BATCH):
        rows = [*range(start, min(start + _BATCH, len(dataset)))]
        yield rows, *move(*dataset.__getitems__(Batch(rows, None)), device)
