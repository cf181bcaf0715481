"""KD++ and DKD++ as mdistiller's distillers. Written against its master of 2023.

Importing this module adds them to mdistiller's ``distiller_dict`` as "KD++" and "DKD++", and the
node ND to its ``CFG``: in tools/train.py it takes one import.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mdistiller.distillers import distiller_dict
from mdistiller.distillers._base import Distiller
from mdistiller.engine.cfg import CFG
from torch import Tensor, nn

import ndfast
from ndfast.losses import dkd_loss, kd_loss

CFG.ND = type(CFG)()
CFG.ND.CLASS_MEANS = ""  # file of the teacher's class means [K, D], as load_class_means takes it
CFG.ND.WEIGHT = 1.0  # the ND loss's factor
CFG.ND.STUDENT_DIM = 0  # width of the student's pooled features where it is not the teacher's


class _NDDistiller(Distiller):
    """Cross entropy, a distillation loss on the logits, and the ND loss on the pooled features."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any, ce_weight: float) -> None:
        super().__init__(student, teacher)
        if not cfg.ND.CLASS_MEANS:
            raise ValueError("ND.CLASS_MEANS: got none; expected the file of the class means")
        self.ce_weight = ce_weight
        self.nd = ndfast.NDLoss(ndfast.load_class_means(cfg.ND.CLASS_MEANS), cfg.ND.WEIGHT)
        dim, D = cfg.ND.STUDENT_DIM, self.nd.class_means.shape[1]
        # The projector of KD++'s authors.
        self.projector = (
            nn.Sequential(nn.BatchNorm1d(dim), nn.Dropout(0.5), nn.Linear(dim, D))
            if dim not in (0, D)
            else nn.Identity()
        )

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor, epoch: int) -> Tensor:
        """The loss on the logits [N, K], 0-dim."""
        raise NotImplementedError

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits [N, K], and the losses "loss_ce", "loss_kd" and "loss_nd", 0-dim.

        Args:
            image: [N, 3, H, W].
            target: class indices [N].
            **kwargs: "epoch", from 1, as mdistiller's trainers give it.
        """
        logits, features = self.student(image)
        with torch.no_grad():
            teacher_logits, teacher_features = self.teacher(image)
        pooled = self.projector(features["pooled_feat"].flatten(1))
        kd = self.distillation(logits, teacher_logits, target, kwargs["epoch"])
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": kd,
            "loss_nd": self.nd(pooled, teacher_features["pooled_feat"].flatten(1), target),
        }

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """The student's parameters and the projector's."""
        return [*super().get_learnable_parameters(), *self.projector.parameters()]

    def get_extra_parameters(self) -> int:
        """How many parameters the projector has."""
        return sum(parameter.numel() for parameter in self.projector.parameters())


class KDPlusPlus(_NDDistiller):
    """KD++: mdistiller's KD, by the node KD, and the ND loss, by the node ND.

    Source: KD++, arXiv 2305.17007.

    Args:
        student: gives logits and a dict with "pooled_feat".
        teacher: likewise.
        cfg: mdistiller's config.

    Raises:
        OSError: the file of ND.CLASS_MEANS cannot be read.
        ValueError: it is not given, or holds no class means.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher, cfg, cfg.KD.LOSS.CE_WEIGHT)
        self.kd_weight, self.temperature = cfg.KD.LOSS.KD_WEIGHT, cfg.KD.TEMPERATURE

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor, epoch: int) -> Tensor:
        """KD with its factor."""
        return self.kd_weight * kd_loss(student, teacher, self.temperature)


class DKDPlusPlus(_NDDistiller):
    """DKD++: mdistiller's DKD, by the node DKD, and the ND loss, by the node ND.

    Arguments and errors are those of `KDPlusPlus`. DKD is warmed up as in mdistiller, the ND loss
    is not.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher, cfg, cfg.DKD.CE_WEIGHT)
        self.alpha, self.beta, self.temperature = cfg.DKD.ALPHA, cfg.DKD.BETA, cfg.DKD.T
        self.warmup = cfg.DKD.WARMUP

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor, epoch: int) -> Tensor:
        """DKD with its warm-up."""
        loss = dkd_loss(student, teacher, target, self.alpha, self.beta, self.temperature)
        return min(epoch / self.warmup, 1.0) * loss


distiller_dict |= {"KD++": KDPlusPlus, "DKD++": DKDPlusPlus}
