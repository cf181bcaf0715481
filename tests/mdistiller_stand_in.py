"""The interface of mdistiller that its adapter speaks to, for it is on no package index."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn


class Config(dict):
    """A node of yacs: a dict whose keys are attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Distiller(nn.Module):
    """What forward is called by is `forward_train` in training; the teacher stays as it is."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        return 0

    def forward(self, **kwargs: Any) -> Any:
        return self.forward_train(**kwargs) if self.training else self.student(kwargs["image"])[0]


def install(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Puts the modules in place; returns ``distiller_dict`` and ``CFG`` with mdistiller's nodes."""
    cfg = Config(
        KD=Config(TEMPERATURE=4, LOSS=Config(CE_WEIGHT=0.1, KD_WEIGHT=0.9)),
        DKD=Config(CE_WEIGHT=1.0, ALPHA=1.0, BETA=8.0, T=4.0, WARMUP=20),
    )
    contents: dict[str, dict[str, Any]] = {
        "mdistiller": {},
        "mdistiller.distillers": {"distiller_dict": {}},
        "mdistiller.distillers._base": {"Distiller": Distiller},
        "mdistiller.engine": {},
        "mdistiller.engine.cfg": {"CFG": cfg},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        patch.setitem(sys.modules, name, module)
    return {**contents["mdistiller.distillers"], "CFG": cfg}


class Network(nn.Module):
    """Gives logits and a dict of features, as mdistiller's networks do."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(12, dim), nn.Linear(dim, num_classes)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.body(image.flatten(1)).relu()
        return self.fc(features), {"pooled_feat": features}
