"""A stand-in for what ndfast and its examples use of detectron2 0.6, which does not install here.

Names, arguments and results are those of detectron2; boxes are pooled by the mean of a crop, and
the proposals of an image are the same boxes each time.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

K, D = 3, 8
BOXES = torch.tensor([[0, 0, 4, 4], [2, 2, 8, 8], [0, 4, 8, 8], [1, 0, 3, 6]])


class CfgNode(dict):
    """A dict whose keys are attributes, as yacs has it."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def merge_from_file(self, path: str) -> None:
        """The files of the tests hold one number, the generator's seed."""
        self.SEED = int(Path(path).read_text())


def get_cfg() -> CfgNode:
    model = CfgNode(META_ARCHITECTURE="GeneralizedRCNN", DEVICE="cpu", WEIGHTS="")
    return CfgNode(MODEL=model, SEED=0)


def configurable(init: Any) -> Any:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and isinstance(args[0], CfgNode):
            kwargs = {**type(self).from_config(args[0]), **kwargs}
            args = ()
        init(self, *args, **kwargs)

    return wrapped


class Registry(dict):
    def register(self) -> Any:
        def add(cls: type) -> type:
            self[cls.__name__] = cls
            return cls

        return add


META_ARCH_REGISTRY = Registry()


class Instances(SimpleNamespace):
    def to(self, device: Any) -> Instances:
        return self


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"p2": self.conv(images), "p3": -self.conv(images)}


class Proposals(nn.Module):
    def forward(self, images: Any, maps: Any, objects: Any) -> tuple[list[Instances], dict]:
        found = [Instances(proposal_boxes=BOXES) for _ in images.tensor]
        return found, {} if objects is None else {"loss_rpn_cls": maps["p2"].sum() * 0}


class BoxHead(nn.Module):
    output_shape = SimpleNamespace(channels=D)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, D)
        self.calls = 0

    def forward(self, pooled: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(pooled)


class BoxPredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_score = nn.Linear(D, K + 1)
        self.bbox_pred = nn.Linear(D, 4 * K)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


class StandardROIHeads(nn.Module):
    def __init__(self, train_on_pred_boxes: bool = False) -> None:
        super().__init__()
        self.num_classes = K
        self.box_in_features = ["p3"]
        self.train_on_pred_boxes = train_on_pred_boxes
        self.box_head = BoxHead()
        self.box_predictor = BoxPredictor()

    def box_pooler(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        crops = [
            own[:, top:bottom, left:right].mean(dim=(1, 2))
            for own, of_image in zip(maps[0], boxes, strict=True)
            for left, top, right, bottom in of_image.tolist()
        ]
        return torch.stack(crops) if crops else maps[0].new_zeros(0, maps[0].shape[1])

    def label_and_sample_proposals(self, proposals: Any, objects: Any) -> list[Instances]:
        """As many of the boxes of each image as it has labels."""
        return [
            Instances(proposal_boxes=own.proposal_boxes[: len(o.labels)], gt_classes=o.labels)
            for own, o in zip(proposals, objects, strict=True)
        ]

    def forward(
        self, images: Any, maps: dict[str, Tensor], proposals: Any, objects: Any = None
    ) -> tuple[list[Any], dict[str, Tensor]]:
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, objects)
        boxes = [own.proposal_boxes for own in proposals]
        pooled = self.box_pooler([maps[name] for name in self.box_in_features], boxes)
        scores, deltas = self.box_predictor(self.box_head(pooled))
        if not self.training:
            return ["detections"], {}
        return proposals, {"loss_cls": scores.square().sum(), "loss_box_reg": deltas.sum() * 0}


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(nn.Module):
    @configurable
    def __init__(
        self, *, backbone: Any, proposal_generator: Any, roi_heads: Any, pixel_mean: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        torch.manual_seed(cfg.SEED)
        return {
            "backbone": Backbone(),
            "proposal_generator": Proposals(),
            "roi_heads": StandardROIHeads(),
            "pixel_mean": 0.1 * cfg.SEED,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batch: list[dict[str, Any]]) -> Any:
        images = [image["image"] - self.pixel_mean for image in batch]
        return SimpleNamespace(tensor=torch.stack(images))

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        images = self.preprocess_image(batch)
        maps = self.backbone(images.tensor)
        objects = [image["instances"] for image in batch] if self.training else None
        proposals, losses = self.proposal_generator(images, maps, objects)
        found, more = self.roi_heads(images, maps, proposals, objects)
        return {**more, **losses} if self.training else found


def build_model(cfg: CfgNode) -> Any:
    return META_ARCH_REGISTRY[cfg.MODEL.META_ARCHITECTURE](cfg)


class DetectionCheckpointer:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def load(self, path: str) -> None:
        self.model.load_state_dict(torch.load(path, weights_only=True))


class EventStorage:
    def __enter__(self) -> None: ...

    def __exit__(self, *exception: Any) -> None: ...


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in where an import finds it, until the test ends."""
    names = {
        "checkpoint": [DetectionCheckpointer],
        "config": [CfgNode, configurable, get_cfg],
        "modeling": [GeneralizedRCNN, build_model],
        "utils": [],
        "utils.events": [EventStorage],
        "data": [],
        "engine": [],
    }
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    for name, members in names.items():
        module = ModuleType(f"detectron2.{name}")
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["detectron2.modeling"].META_ARCH_REGISTRY = META_ARCH_REGISTRY
    sys.modules["detectron2.data"].build_detection_train_loader = None
    sys.modules["detectron2.engine"].default_argument_parser = None
