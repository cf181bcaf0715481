"""NDRCNN: KD++ on the box-head features of a detectron2 R-CNN.

Written against detectron2 0.6: `GeneralizedRCNN`, `StandardROIHeads`, `FastRCNNOutputLayers`.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from torch import Tensor, nn

import ndfast
from ndfast.integrations.features import watched
from ndfast.losses import kd_loss

_NOTHING = -100


def add_nd_config(cfg: CfgNode) -> None:
    """Adds the node ND with its defaults to a config, in place; call it before a file is merged.

    TEACHER_CONFIG and TEACHER_WEIGHTS are the teacher's files, CLASS_MEANS that of the class means
    [K + 1, D] of its box features, background last; see `NDRCNN` for the others.
    """
    cfg.ND = CfgNode(
        {
            "TEACHER_CONFIG": "",
            "TEACHER_WEIGHTS": "",
            "CLASS_MEANS": "",
            "ND_WEIGHT": 1.0,
            "KD_WEIGHT": 1.0,
            "TEMPERATURE": 1.0,
            "BACKGROUND": True,
        }
    )


def read_boxes(
    model: Any, batched_inputs: list[dict[str, Any]], proposals: list[Any]
) -> tuple[Tensor, Tensor]:
    """What an R-CNN's box head says of boxes.

    Args:
        model: a `GeneralizedRCNN` with `StandardROIHeads`.
        batched_inputs: a dict an image.
        proposals: `Instances` of each image with ``proposal_boxes``.

    Returns:
        The features [N, D] that the box classifier reads and its logits [N, K + 1].
    """
    heads = model.roi_heads
    maps = model.backbone(model.preprocess_image(batched_inputs).tensor)
    boxes = [own.proposal_boxes for own in proposals]
    pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], boxes)
    features = heads.box_head(pooled)
    logits, _ = heads.box_predictor(features)
    return features, logits


@META_ARCH_REGISTRY.register()
class NDRCNN(GeneralizedRCNN):
    """A student R-CNN that learns by KD and the ND loss from what a teacher says of its proposals.

    Both losses are taken over the proposals that the student's heads sample, as the authors of KD++
    do: "loss_kd" of the box classifier's logits and "loss_nd" of the features that it reads. The
    student's box head runs once, and inference is `GeneralizedRCNN`'s.

    The heads are `StandardROIHeads` or others with its ``box_pooler``, ``box_head`` and
    ``box_predictor``, and do not train on predicted boxes.

    Source: KD++, arXiv 2305.17007, and its authors' code for detection.

    Args:
        teacher: frozen, put in evaluation mode, and no submodule: a checkpoint leaves it out, and
            weights that are loaded by the ends of their names do not end up in it. It stays on the
            device on which it is.
        class_means: of the teacher's box features [K + 1, D], background last.
        nd_weight: the ND loss's factor.
        kd_weight: KD's factor.
        temperature: KD's.
        background: whether proposals of background count in the ND loss.
        **kwargs: those of `GeneralizedRCNN`.

    Raises:
        ValueError: ``class_means`` is not [K + 1, D], or the heads are not as above.
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: nn.Module,
        class_means: Tensor,
        nd_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 1.0,
        background: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        heads = self.roi_heads
        if isinstance(getattr(heads, "box_head", nn.ModuleList()), nn.ModuleList):
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME: got {type(heads).__name__}; NDRCNN takes StandardROIHeads, "
                "or heads with one box head as these have it"
            )
        if heads.train_on_pred_boxes:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES: got True; NDRCNN takes False, as it "
                "compares the boxes that the student's heads have read"
            )
        if len(class_means) != heads.num_classes + 1:
            raise ValueError(
                f"class_means: got {len(class_means)} rows; for {heads.num_classes} classes "
                f"expected {heads.num_classes + 1}, background last"
            )
        self._teacher = (teacher.requires_grad_(False).eval(),)
        self.nd = ndfast.NDLoss(
            class_means,
            nd_weight,
            ignore_index=_NOTHING if background else heads.num_classes,
        )
        self.kd_weight = kd_weight
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments from a config with the node that `add_nd_config` adds."""
        teacher_cfg = get_cfg()
        teacher_cfg.merge_from_file(cfg.ND.TEACHER_CONFIG)
        teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
        teacher = build_model(teacher_cfg)
        DetectionCheckpointer(teacher).load(cfg.ND.TEACHER_WEIGHTS)
        return {
            **super().from_config(cfg),
            "teacher": teacher,
            "class_means": ndfast.load_class_means(cfg.ND.CLASS_MEANS),
            "nd_weight": cfg.ND.ND_WEIGHT,
            "kd_weight": cfg.ND.KD_WEIGHT,
            "temperature": cfg.ND.TEMPERATURE,
            "background": cfg.ND.BACKGROUND,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """The losses of a batch in training, "loss_kd" and "loss_nd" among them; else detections.

        Args:
            batched_inputs: a dict an image, as for `GeneralizedRCNN`. The teacher is shown the
                same images, so its INPUT.FORMAT is the student's.
        """
        if not self.training:
            return super().forward(batched_inputs)
        kept: dict[str, Any] = {}

        def keep_proposals(args: Any, kwargs: Any, output: tuple[Any, Any]) -> None:
            kept["proposals"] = output[0]  # those that were sampled, with their labels

        def keep_features(args: Any, kwargs: Any, output: tuple[Any, Any]) -> None:
            kept["read"] = args[0], output[0]  # features and logits of the proposals

        heads = self.roi_heads
        with watched(heads, keep_proposals), watched(heads.box_predictor, keep_features):
            losses = super().forward(batched_inputs)
        proposals, (features, logits) = kept["proposals"], kept["read"]
        with torch.no_grad():
            teacher_features, teacher_logits = read_boxes(
                self._teacher[0], batched_inputs, proposals
            )
        labels = torch.cat([own.gt_classes for own in proposals])
        return {
            **losses,
            "loss_kd": self.kd_weight * kd_loss(logits, teacher_logits, self.temperature),
            "loss_nd": self.nd(features, teacher_features, labels),
        }
