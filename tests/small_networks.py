"""A network and a teacher small enough to work out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndfast.train.distill.teacher import Teacher
from ndfast.train.models import Output


class Linear(nn.Module):
    """Without normalisation: halves of a batch give what the whole gives."""

    def __init__(self, inputs: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim, self.stage_channels = dim, ()
        self.layer = nn.Linear(inputs, dim)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Output:
        features = self.layer(images.flatten(1))
        return Output(features, self.classifier(features), ())


def small_teacher(dim: int, num_classes: int = 10) -> Teacher:
    torch.manual_seed(7)
    network = Linear(64, dim, num_classes).eval().requires_grad_(False)
    return Teacher(network, torch.randn(num_classes, dim), {"norm": 2.0})
