"""ShuffleNet V1 and V2 in CIFAR size, as RepDistiller and mdistiller have them.

Zhang et al., CVPR 2018, and Ma et al., ECCV 2018; but with a 1x1 stem of stride 1 and without
pooling after it, and in V1 with a ReLU after the depthwise convolution too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ndfast.train.models.network import Network, check_images, convolution

_BLOCKS = (4, 8, 4)
_STEM = 24


class Unit(nn.Module):
    """V1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; at stride 2 joined to the pooled input.

    The ReLU at its end is left to what follows.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        added = outputs if stride == 1 else outputs - inputs
        inner = added // 4
        self.groups = 1 if inputs == _STEM else groups  # 24 channels are too few to be parted
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, added, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(added)
        self.pool = None if stride == 1 else nn.AvgPool2d(3, stride, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] before ReLU, to the same."""
        maps = relu(maps)
        inner = _shuffle(relu(self.bn1(self.conv1(maps))), self.groups)
        added = self.bn3(self.conv3(relu(self.bn2(self.conv2(inner)))))
        return maps + added if self.pool is None else torch.cat([added, self.pool(maps)], dim=1)


class SplitUnit(nn.Module):
    """V2: half of the channels pass, the others are convolved; then both are shuffled.

    The ReLU at its end is left to what follows; to the half that passes it does nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *convolution(half, half, 1),
            nn.ReLU(),
            *convolution(half, half, 3, groups=half),
            *convolution(half, half, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] before ReLU, to the same."""
        passed, convolved = relu(maps).chunk(2, dim=1)
        return _shuffle(torch.cat([passed, self.branch(convolved)], dim=1), 2)


class DownUnit(nn.Module):
    """V2: two branches of convolutions that halve the resolution, shuffled; ReLU left as above."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(
            *convolution(inputs, inputs, 3, 2, groups=inputs), *convolution(inputs, half, 1)
        )
        self.right = nn.Sequential(
            *convolution(inputs, half, 1),
            nn.ReLU(),
            *convolution(half, half, 3, 2, groups=half),
            *convolution(half, half, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] before ReLU, to the same at half the size."""
        maps = relu(maps)
        return _shuffle(torch.cat([self.left(maps), self.right(maps)], dim=1), 2)


def build_shufflenet_v1(name: str, num_classes: int, image_shape: tuple[int, ...]) -> Network:
    """ShuffleNet V1 of 3 groups, with features of 960."""
    check_images(name, image_shape, 8)
    channels = (240, 480, 960)
    stages = []
    inputs = _STEM
    for outputs, blocks in zip(channels, _BLOCKS, strict=True):
        units = [Unit(inputs, outputs, 2, groups=3)]
        units += [Unit(outputs, outputs, 1, groups=3) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(*units))
        inputs = outputs
    return Network(
        nn.Sequential(*convolution(image_shape[0], _STEM, 1)),
        stages,
        channels,
        nn.ReLU(),
        inputs,
        num_classes,
        relu,
    )


def build_shufflenet_v2(name: str, num_classes: int, image_shape: tuple[int, ...]) -> Network:
    """ShuffleNet V2 of width 1, with features of 1024."""
    check_images(name, image_shape, 8)
    channels = (116, 232, 464)
    stages = []
    inputs = _STEM
    for outputs, blocks in zip(channels, _BLOCKS, strict=True):
        units = [SplitUnit(outputs) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(DownUnit(inputs, outputs), *units))
        inputs = outputs
    return Network(
        nn.Sequential(*convolution(image_shape[0], _STEM, 1)),
        stages,
        channels,
        nn.Sequential(nn.ReLU(), *convolution(inputs, 1024, 1), nn.ReLU()),
        1024,
        num_classes,
        relu,
    )


def _shuffle(maps: Tensor, groups: int) -> Tensor:
    """Channel c of group g becomes channel c * groups + g."""
    return maps.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
