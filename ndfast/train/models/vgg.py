"""VGGs with batch normalisation in CIFAR size, as RepDistiller and mdistiller have them.

After Simonyan and Zisserman, ICLR 2015: one linear layer in place of three, and a global mean in
place of the last two poolings, so that 32x32 images come to 4x4.
"""

from __future__ import annotations

from torch import nn
from torch.nn.functional import relu

from ndfast.train.models.network import Network, check_images, initialise_convolutions

_CHANNELS = (64, 128, 256, 512, 512)
_ALIASES = (
    (r"^block0\.", "stem."),
    *((rf"^block{stage + 1}\.", f"stages.{stage}.convolutions.") for stage in range(4)),
)


def build_vgg(
    name: str, num_classes: int, image_shape: tuple[int, ...], convolutions: tuple[int, ...]
) -> Network:
    """A stem and four stages, each of as many 3x3 convolutions as ``convolutions`` says."""
    check_images(name, image_shape, 8)
    inputs = image_shape[0]
    parts = []
    for count, outputs in zip(convolutions, _CHANNELS, strict=True):
        parts.append(_convolutions(inputs, outputs, count))
        inputs = outputs
    stem, *rest = parts
    stages = []
    for part in rest:
        stage = nn.Sequential(nn.ReLU())
        if part is not rest[-1]:
            stage.append(nn.MaxPool2d(2))
        stage.add_module("convolutions", part)
        stages.append(stage)
    network = Network(stem, stages, _CHANNELS[1:], nn.ReLU(), inputs, num_classes, relu, _ALIASES)
    initialise_convolutions(network)
    return network


def _convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])
