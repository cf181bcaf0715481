"""ConvNet: the smallest network here, for digits and MNIST-1D."""

from __future__ import annotations

from torch import nn
from torch.nn.functional import silu

from ndfast.train.errors import ConfigError
from ndfast.train.models.network import Network


def build_convnet(name: str, num_classes: int, image_shape: tuple[int, ...], width: int) -> Network:
    """Three stages of convolution, batch normalisation and SiLU; channels ``width`` times 1, 2, 4.

    The kernel is 3 wide, for 1-D input 5. Every stage but the first halves the resolution. SiLU
    because it is smooth: with ReLU the first activation whose sign flips by rounding separates two
    float32 trainings for good, and the comparison of the fused loss with the reference could not
    span a whole training.
    """
    if len(image_shape) not in (2, 3) or min(image_shape[1:]) < 4:
        raise ConfigError(
            f"model {name}: got images of shape {image_shape}; expected (C, L) or (C, H, W) with "
            "sides of 4 or more"
        )
    one_dimensional = len(image_shape) == 2
    convolution = nn.Conv1d if one_dimensional else nn.Conv2d
    normalisation = nn.BatchNorm1d if one_dimensional else nn.BatchNorm2d
    kernel = 5 if one_dimensional else 3
    channels = (width, 2 * width, 4 * width)
    stages: list[nn.Module] = []
    for inputs, outputs in zip((image_shape[0], *channels), channels, strict=False):
        first = not stages
        stages.append(
            nn.Sequential(
                nn.Identity() if first else nn.SiLU(),
                convolution(inputs, outputs, kernel, 1 if first else 2, kernel // 2, bias=False),
                normalisation(outputs),
            )
        )
    return Network(nn.Identity(), stages, channels, nn.SiLU(), channels[-1], num_classes, silu)
