"""The class means of a detectron2 teacher's box features, over the proposals that it samples.

    python class_means.py --config-file TEACHER.yaml MODEL.WEIGHTS TEACHER.pkl

writes class_means.safetensors, [K + 1, D] with background last.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import ndfast
from ndfast.integrations.detectron2 import read_boxes

BATCHES = 10_000


@torch.no_grad()
def take_class_means(teacher: Any, batches: Any) -> ndfast.ClassMeans:
    heads = teacher.roi_heads
    means = ndfast.ClassMeans(heads.num_classes + 1, heads.box_head.output_shape.channels)
    with EventStorage():  # the heads write there what they sample
        for batch in batches:
            images = teacher.preprocess_image(batch)
            maps = teacher.backbone(images.tensor)
            proposals, _ = teacher.proposal_generator(images, maps, None)
            objects = [image["instances"].to(teacher.device) for image in batch]
            sampled = heads.label_and_sample_proposals(proposals, objects)
            features, _ = read_boxes(teacher, batch, sampled)
            means.update(features, torch.cat([own.gt_classes for own in sampled]))
    return means


def main(args: Any) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    teacher = build_model(cfg).eval()
    DetectionCheckpointer(teacher).load(cfg.MODEL.WEIGHTS)
    means = take_class_means(teacher, islice(build_detection_train_loader(cfg), BATCHES))
    ndfast.save_class_means("class_means.safetensors", means.compute(), counts=means.counts)


if __name__ == "__main__":
    main(default_argument_parser().parse_args())
