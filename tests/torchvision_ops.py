"""Lets torchvision and timm be imported beside a torch that torchvision was not compiled for.

Its wheel looks for its compiled operators at import and fails without them. This declares those
that it looks for, and gives nms in plain Python, and roi_align as torchvision itself has it in
Python; where torchvision works by itself nothing is done. Import this before torchvision or timm.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_LIBRARY: torch.library.Library | None = None  # the declarations live as long as this


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    overlaps = box_iou(boxes, boxes) > iou_threshold
    kept: list[int] = []
    for row in order.tolist():
        if not overlaps[row, kept].any():
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)


def _declare() -> None:
    global _LIBRARY
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.impl("nms", _nms, "CPU")
    import torchvision.ops.boxes

    # torchvision.ops.nms asks this before it calls the operator that is declared above.
    torchvision.ops.boxes._assert_has_ops = lambda: None
    # Without its operators torchvision compiles this one, which takes half a minute.
    roi_align = sys.modules["torchvision.ops.roi_align"]
    roi_align._roi_align = roi_align._roi_align.__wrapped__


try:
    import torchvision  # noqa: F401
except RuntimeError as error:  # "operator torchvision::nms does not exist"
    if "torchvision::" not in str(error):
        raise
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    _declare()
