"""ResNets in CIFAR size (He et al., CVPR 2016, section 4.2), as in RepDistiller and mdistiller.

Their ResNet-50 is ImageNet's with a 3x3 stem of stride 1 in place of a 7x7 one and a pooling.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from ndfast.train.models.network import Network, check_images, convolution, initialise_convolutions

_ALIASES = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    *(
        (rf"^layer{stage + 1}\.(\d+)\.(?:downsample|shortcut)\.", rf"stages.{stage}.\1.shortcut.")
        for stage in range(4)
    ),
    *((rf"^layer{stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"^(?:fc|linear)\.", "classifier."),
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. The ReLU at their end is left to what follows."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] before ReLU, to the same."""
        maps = relu(maps)
        inner = relu(self.bn1(self.conv1(maps)))
        return self.bn2(self.conv2(inner)) + self.shortcut(maps)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, the ReLU at their end left to what follows."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] before ReLU, to the same."""
        maps = relu(maps)
        inner = relu(self.bn1(self.conv1(maps)))
        inner = relu(self.bn2(self.conv2(inner)))
        return self.bn3(self.conv3(inner)) + self.shortcut(maps)


def build_resnet(
    name: str,
    num_classes: int,
    image_shape: tuple[int, ...],
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    channels: tuple[int, ...],
) -> Network:
    """A ResNet whose stages but the first halve the resolution.

    ``channels`` are of the stem, then of each stage, before the block's expansion.
    """
    check_images(name, image_shape, 2 ** (len(blocks) - 1))
    inputs = channels[0]
    stem = nn.Sequential(*convolution(image_shape[0], inputs, 3))
    stages = []
    for stage, (count, width) in enumerate(zip(blocks, channels[1:], strict=True)):
        layers: list[nn.Module] = []
        for index in range(count):
            layers.append(block(inputs, width, 2 if stage and not index else 1))
            inputs = block.expansion * width
        stages.append(nn.Sequential(*layers))
    stage_channels = tuple(block.expansion * width for width in channels[1:])
    network = Network(stem, stages, stage_channels, nn.ReLU(), inputs, num_classes, relu, _ALIASES)
    initialise_convolutions(network)
    return network


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*convolution(inputs, outputs, 1, stride))
