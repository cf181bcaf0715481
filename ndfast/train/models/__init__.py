"""The networks by name, each of which returns an `Output`."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from ndfast.train.errors import ConfigError
from ndfast.train.models.convnet import build_convnet
from ndfast.train.models.mobilenet import build_mobilenet_v2
from ndfast.train.models.network import Network, Output
from ndfast.train.models.resnet import BasicBlock, Bottleneck, build_resnet
from ndfast.train.models.shufflenet import build_shufflenet_v1, build_shufflenet_v2
from ndfast.train.models.timm_models import PREFIX, TimmNetwork, build_timm_model
from ndfast.train.models.vgg import build_vgg
from ndfast.train.models.wide_resnet import build_wide_resnet

__all__ = ["MODELS", "AnyNetwork", "Output", "build_model"]

AnyNetwork = Network | TimmNetwork
"""What `build_model` gives."""

_THIN, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: dict[str, Callable[[str, int, tuple[int, ...]], Network]] = {
    "convnet4": partial(build_convnet, width=4),
    "convnet32": partial(build_convnet, width=32),
    "resnet20": partial(build_resnet, block=BasicBlock, blocks=(3, 3, 3), channels=_THIN),
    "resnet32": partial(build_resnet, block=BasicBlock, blocks=(5, 5, 5), channels=_THIN),
    "resnet56": partial(build_resnet, block=BasicBlock, blocks=(9, 9, 9), channels=_THIN),
    "resnet110": partial(build_resnet, block=BasicBlock, blocks=(18, 18, 18), channels=_THIN),
    "resnet8x4": partial(build_resnet, block=BasicBlock, blocks=(1, 1, 1), channels=_WIDE),
    "resnet32x4": partial(build_resnet, block=BasicBlock, blocks=(5, 5, 5), channels=_WIDE),
    "resnet50": partial(
        build_resnet, block=Bottleneck, blocks=(3, 4, 6, 3), channels=(64, 64, 128, 256, 512)
    ),
    "wrn_16_2": partial(build_wide_resnet, depth=16, width=2),
    "wrn_40_1": partial(build_wide_resnet, depth=40, width=1),
    "wrn_40_2": partial(build_wide_resnet, depth=40, width=2),
    "vgg8": partial(build_vgg, convolutions=(1, 1, 1, 1, 1)),
    "vgg13": partial(build_vgg, convolutions=(2, 2, 2, 2, 2)),
    "mobilenetv2": build_mobilenet_v2,
    "shufflenetv1": build_shufflenet_v1,
    "shufflenetv2": build_shufflenet_v2,
}


def build_model(
    name: str, num_classes: int, image_shape: tuple[int, ...], pretrained: bool = False
) -> AnyNetwork:
    """A network by its name.

    Args:
        name: one of `MODELS`, or timm:NAME for one of timm's.
        num_classes: K.
        image_shape: of one image, (C, H, W) or (C, L).
        pretrained: with timm's weights, for one of timm's.

    Returns:
        A module whose ``forward(images)`` gives an `Output`, with the attributes ``dim`` (D),
        ``stage_channels`` (C of each stage; empty where it has none), ``before_fusion`` (see
        `Network`) and ``classifier``, an nn.Linear from D to K.

    Raises:
        ConfigError: the name is unknown, it does not take such images, or it has no such weights.
        ModuleNotFoundError: a model of timm's, which is not installed.
    """
    if name.startswith(PREFIX):
        return build_timm_model(name, num_classes, image_shape, pretrained)
    if pretrained:
        raise ConfigError(f"model {name}: has no pretrained weights; timm's models have")
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"model: got {name!r}; expected {', '.join(sorted(MODELS))} or timm:NAME{hint}"
        )
    return MODELS[name](name, num_classes, image_shape)
