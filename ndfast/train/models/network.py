"""What all networks have in common: stem, stages, head, the mean over positions, classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ndfast.train.errors import ConfigError


class Output(NamedTuple):
    """What a network gives for N images.

    Args:
        features: [N, D], the penultimate ones, pooled.
        logits: [N, K], the classifier's answer to the features.
        stages: a [N, C, H, W] each ([N, C, L] for 1-D data), from high to low resolution, before
            the activation that ends a stage, as ReviewKD takes a teacher's.
    """

    features: Tensor
    logits: Tensor
    stages: tuple[Tensor, ...]


class Network(nn.Module):
    """A classifier of images (or of 1-D signals).

    Every stage leaves out the activation that ends it, and whatever follows begins with it; so what
    passes from stage to stage is what ReviewKD takes of a teacher.

    Args:
        stem: from the images to the first stage.
        stages: in order.
        stage_channels: C of each stage's output.
        head: from the last stage to the maps [N, D, ...] whose mean over the positions are the
            features.
        dim: D.
        num_classes: K.
        before_fusion: what a student's stages go through before ReviewKD fuses them: the activation
            of those networks whose stages its authors take after it, of a student only.
        aliases: patterns and replacements (`re.sub`) that lead from the parameter names of
            RepDistiller's, mdistiller's and KD++'s checkpoints to these; the first that matches
            holds.

    Attributes:
        classifier: nn.Linear from D to K.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        stage_channels: tuple[int, ...],
        head: nn.Module,
        dim: int,
        num_classes: int,
        before_fusion: Callable[[Tensor], Tensor] | None,
        aliases: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = head
        self.classifier = nn.Linear(dim, num_classes)
        self.dim = dim
        self.stage_channels = stage_channels
        self.before_fusion = before_fusion
        self.aliases = aliases

    def forward(self, images: Tensor) -> Output:
        """Takes images [N, C, H, W], or signals [N, C, L], of any floating-point dtype."""
        maps = self.stem(images)
        stages = []
        for stage in self.stages:
            maps = stage(maps)
            stages.append(maps)
        features = self.head(maps).flatten(2).mean(dim=2)
        return Output(features, self.classifier(features), tuple(stages))


def check_images(name: str, image_shape: tuple[int, ...], stride: int) -> None:
    """Raises ConfigError if images are not 2-D, or smaller than a whole network's ``stride``."""
    if len(image_shape) != 3 or min(image_shape[1:]) < stride:
        raise ConfigError(
            f"model {name}: got images of shape {image_shape}; expected (C, H, W) with H and W of "
            f"{stride} or more"
        )


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    """A convolution without a bias, and batch normalisation."""
    padding = kernel // 2
    return (
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


def initialise_convolutions(network: nn.Module) -> None:
    """Normal of variance 2 / fan_out (He et al., ICCV 2015), as the KD papers' networks have it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_linear(network: nn.Module, how: str | None) -> None:
    """As KD++'s authors begin with linear layers; see ``linear_init`` of a run's config."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and how == "zero_bias" and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and how == "normal":
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.01)
