"""timm's models, with their penultimate features and stages."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ndfast.train.errors import ConfigError, import_package
from ndfast.train.models.network import Output, check_images

PREFIX = "timm:"


class TimmNetwork(nn.Module):
    """A model of timm's whose forward gives an `Output`.

    Its stages are the last maps of each resolution, from a quarter of the images' side on, as KD
    papers take them on ImageNet; timm gives them after their activation.

    Args:
        timm_model: as `timm.create_model` gives it.
        image_shape: (C, H, W).

    Attributes:
        dim: D, the width of what the classifier reads, which may differ from timm's num_features.
        stage_channels: C of each stage; empty where timm gives no intermediate maps of the model.
        before_fusion: nothing, the stages are what ReviewKD fuses; see `Network`.
        aliases: lead from timm's parameter names to these; see `Network`.

    Raises:
        ValueError: the classifier is not one nn.Linear, or the features are not what it reads.
    """

    aliases = ((r"^", "timm_model."),)
    before_fusion = None

    def __init__(self, timm_model: nn.Module, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.timm_model: Any = timm_model
        if not isinstance(self.classifier, nn.Linear):
            raise ValueError(f"its classifier is {_kind(self.classifier)}; expected one nn.Linear")
        self.dim = self.classifier.in_features
        self.stage_channels: tuple[int, ...] = ()
        self._stage_indices: list[int] = []
        training = self.training
        self.eval()
        # Not from the global generator, whose numbers decide what is trained.
        images = torch.rand(1, *image_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self._find_stages(images)
            logits, expected = self(images).logits, timm_model(images)
        self.train(training)
        same = logits.is_meta or torch.allclose(logits, expected, atol=1e-4)
        if logits.shape != expected.shape or not same:
            raise ValueError("its classifier does not read what timm gives as its features")

    @property
    def classifier(self) -> nn.Linear:
        """The model's own, from D to K."""
        return self.timm_model.get_classifier()

    def forward(self, images: Tensor) -> Output:
        """Takes images [N, C, H, W] of any floating-point dtype."""
        model = self.timm_model
        stages: list[Tensor] = []
        if self._stage_indices:
            maps, stages = model.forward_intermediates(images, indices=self._stage_indices)
        else:
            maps = model.forward_features(images)
        features = model.forward_head(maps, pre_logits=True)
        return Output(features, self.classifier(features), tuple(stages))

    def _find_stages(self, images: Tensor) -> None:
        if not hasattr(self.timm_model, "forward_intermediates"):
            return
        maps = self.timm_model.forward_intermediates(images, intermediates_only=True)
        last = {
            stage.shape[2:]: index
            for index, stage in enumerate(maps)
            if stage.shape[2] <= math.ceil(images.shape[2] / 4)
        }
        self._stage_indices = list(last.values())
        self.stage_channels = tuple(maps[index].shape[1] for index in self._stage_indices)


def build_timm_model(
    name: str, num_classes: int, image_shape: tuple[int, ...], pretrained: bool
) -> TimmNetwork:
    """A model of timm's; see `ndfast.train.models.build_model`.

    One that is built for images of one size is built for these; the pretrained weights come from
    timm's cache or over the network.

    Raises:
        ConfigError: timm has no such model, or no such weights, of K classes, can be had; the
            images do not fit; the classifier is not one nn.Linear.
    """
    timm = import_package("timm")
    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), n=1)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        raise ConfigError(f"model {name}: timm {timm.__version__} has no such model{hint}")
    check_images(name, image_shape, stride=1)
    sizes: dict[str, Any] = {}
    published = timm.get_pretrained_cfg(model)
    if pretrained and published is not None and published.num_classes != num_classes:
        raise ConfigError(
            f"model {name}: its pretrained classifier has {published.num_classes} classes, the "
            f"data has {num_classes}; expected a checkpoint of its own"
        )
    if published is not None and published.fixed_input_size:
        sizes["img_size"] = image_shape[1:]
    try:
        network = timm.create_model(
            model, pretrained, num_classes=num_classes, in_chans=image_shape[0], **sizes
        )
    except Exception as error:  # timm, the hub's client and the network raise anything
        what = "its weights cannot be had" if pretrained else f"cannot take images {image_shape}"
        raise ConfigError(f"model {name}: {what}: {_first_line(error)}") from error
    try:
        return TimmNetwork(network, image_shape)
    except ValueError as error:
        raise ConfigError(f"model {name}: {error}") from error
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model {name}: cannot take images {image_shape}: {_first_line(error)}"
        ) from error


def _kind(classifier: object) -> str:
    if isinstance(classifier, tuple):
        return f"{len(classifier)} layers"
    return f"a {type(classifier).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
