"""Everything that is trained, in one module whose forward gives the losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ndfast
from ndfast.losses import ReviewKD, cross_entropy, dist_loss, dkd_loss, kd_loss
from ndfast.train.config.methods import METHODS
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.distill.teacher import Teacher
from ndfast.train.errors import ConfigError
from ndfast.train.models import AnyNetwork, Output
from ndfast.train.models.network import initialise_linear


class Distiller(nn.Module):
    """A student, and what a method puts beside it.

    One module, because DistributedDataParallel wants all parameters under one forward. The
    teacher is not in it: it is frozen, and no checkpoint needs it.

    Args:
        network: the student; see `ndfast.train.models`.
        config: the method, its weights and its temperatures.
        teacher: whose widths and class means are read; None without one.

    Attributes:
        projector: takes the student's features to the teacher's width, where that differs: the
            authors' BatchNorm1d, Dropout(0.5), Linear. Only the ND loss sees what it gives; the
            classifier reads the network's own features.
        nd: the ND loss with its class means. A method without it has it only with ``config.probe``
            and a projector, and its gradient stops at the network's features.

    Raises:
        ConfigError: ReviewKD and a network without stages, or two of unequal numbers of them.
    """

    def __init__(
        self,
        network: AnyNetwork,
        config: TrainConfig,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        initialise_linear(network, config.linear_init)
        self.network = network
        self.config = config
        self.method = METHODS[config.method]
        self.projector: nn.Module | None = None
        self.nd: ndfast.NDLoss | None = None
        self.review: ReviewKD | None = None
        if teacher is None:
            return
        dim = teacher.network.dim
        if dim != network.dim and (self.method.nd or config.probe):
            self.projector = nn.Sequential(
                nn.BatchNorm1d(network.dim), nn.Dropout(0.5), nn.Linear(network.dim, dim)
            )
            initialise_linear(self.projector, config.linear_init)
        if self.method.nd or self.projector is not None:
            assert teacher.class_means is not None
            self.nd = ndfast.NDLoss(
                teacher.class_means,
                config.nd_weight,
                learnable=config.learnable_class_means and self.method.nd,
                backend=config.backend,
            )
        if self.method.distillation == "reviewkd":
            for role, model in (("model", network), ("teacher", teacher.network)):
                if not model.stage_channels:
                    raise ConfigError(f"{role}: {config.method} needs a network with stages")
            ours, theirs = (
                (*model.stage_channels, model.dim) for model in (network, teacher.network)
            )
            if len(ours) != len(theirs):
                raise ConfigError(
                    f"model: got a network of {len(ours) - 1} stages against the teacher's "
                    f"{len(theirs) - 1}; reviewkd takes equal numbers of stages"
                )
            self.review = ReviewKD(ours, theirs, config.review_channels, network.before_fusion)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | ndfast.Mix | None = None,
        teacher: Output | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch; without labels, what evaluation looks at.

        Args:
            images: [N, C, ...].
            labels: int64 [N], or a Mix of them.
            teacher: what the teacher gives for the images; None where the method has none.

        Returns:
            Without ``labels`` "features" [N, D], in the teacher's space if there is a projector,
            and "logits" [N, K]. Else the method's losses, 0-dim: "ce", "distillation", and "nd"
            with its factor, which its kernel multiplies by; and "accuracy" of the batch for
            unmixed labels.
        """
        student: Output = self.network(images)
        if labels is None:
            return {"features": self._project(student.features), "logits": student.logits}
        config = self.config
        smoothing = config.label_smoothing
        losses = {"ce": cross_entropy(student.logits, labels, smoothing)}
        if isinstance(labels, Tensor):
            with torch.no_grad():
                losses["accuracy"] = (student.logits.argmax(dim=1) == labels).float().mean()
        if teacher is None:
            return losses
        if self.method.distillation is not None:
            losses["distillation"] = self._distil(student, teacher, labels)
        if self.nd is not None:
            losses["nd"] = self.nd(self._project(student.features), teacher.features, labels)
        return losses

    def _project(self, features: Tensor) -> Tensor:
        if self.projector is None:
            return features
        # Without the ND loss the projector is a probe: it must not teach the network anything.
        return self.projector(features if self.method.nd else features.detach())

    def _distil(self, student: Output, teacher: Output, labels: Tensor | ndfast.Mix) -> Tensor:
        config, name = self.config, self.method.distillation
        if name == "kd":
            return kd_loss(student.logits, teacher.logits, config.temperature)
        if name == "dist":
            return dist_loss(
                student.logits,
                teacher.logits,
                config.dist_beta,
                config.dist_gamma,
                config.temperature,
            )
        if name == "dkd":
            assert isinstance(labels, Tensor)  # the config refuses to mix them
            return dkd_loss(
                student.logits,
                teacher.logits,
                labels,
                config.dkd_alpha,
                config.dkd_beta,
                config.temperature,
            )
        assert self.review is not None
        return self.review((*student.stages, student.features), (*teacher.stages, teacher.features))
