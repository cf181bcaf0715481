"""MobileNetV2 (Sandler et al., CVPR 2018) in CIFAR size, as RepDistiller and mdistiller have it.

Half as wide, and the stem and the second group of blocks halve the resolution as little as makes
32x32 images come to 2x2. ReLU in place of ReLU6.
"""

from __future__ import annotations

from torch import Tensor, nn

from ndfast.train.models.network import Network, check_images, convolution, initialise_convolutions

# Each stage's groups of blocks: expansion, channels, blocks, stride of the first.
_STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 on each channel, 1x1 back without an activation; and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.layers = nn.Sequential(
            *convolution(inputs, inner, 1),
            nn.ReLU(),
            *convolution(inner, inner, 3, stride, groups=inner),
            nn.ReLU(),
            *convolution(inner, outputs, 1),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] to the same, at stride 2 of half the size."""
        outputs = self.layers(maps)
        return maps + outputs if self.shortcut else outputs


def build_mobilenet_v2(name: str, num_classes: int, image_shape: tuple[int, ...]) -> Network:
    """MobileNetV2 at width 0.5, with features of 1280."""
    check_images(name, image_shape, 16)
    stem = nn.Sequential(*convolution(image_shape[0], 16, 3, stride=2), nn.ReLU())
    stages = []
    inputs = 16
    for groups in _STAGES:
        stage = nn.Sequential()
        for expansion, channels, blocks, stride in groups:
            for index in range(blocks):
                stage.append(InvertedResidual(inputs, channels, 1 if index else stride, expansion))
                inputs = channels
        stages.append(stage)
    head = nn.Sequential(*convolution(inputs, 1280, 1), nn.ReLU())
    network = Network(stem, stages, (12, 16, 48, 160), head, 1280, num_classes, None)
    initialise_convolutions(network)
    return network
