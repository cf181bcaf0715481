"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016), as RepDistiller and mdistiller have them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from ndfast.train.models.network import Network, check_images, initialise_convolutions


class Block(nn.Module):
    """Batch normalisation and ReLU before each of two 3x3 convolutions, and a shortcut.

    A block that changes the width does not normalise its input: whatever comes before it has done
    so, because ReviewKD compares stages after that normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = inputs == outputs
        self.bn1 = nn.BatchNorm2d(inputs) if same else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] to the sum of shortcut and convolutions."""
        active = relu(self.bn1(maps))
        inner = self.conv2(relu(self.bn2(self.conv1(active))))
        return inner + (maps if self.shortcut is None else self.shortcut(active))


def build_wide_resnet(
    name: str, num_classes: int, image_shape: tuple[int, ...], depth: int, width: int
) -> Network:
    """WRN-``depth``-``width``: three stages of (depth - 4) / 6 blocks, of channels ``width`` times
    16, 32, 64.
    """
    check_images(name, image_shape, 4)
    channels = (16 * width, 32 * width, 64 * width)
    stem: list[nn.Module] = [nn.Conv2d(image_shape[0], 16, 3, 1, 1, bias=False)]
    if width > 1:
        stem.append(nn.BatchNorm2d(16))
    stages: list[nn.Module] = []
    inputs = 16
    for outputs in channels:
        layers = [Block(inputs, outputs, 2 if stages else 1)]
        layers += [Block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
        stages.append(nn.Sequential(*layers, nn.BatchNorm2d(outputs)))
        inputs = outputs
    network = Network(
        nn.Sequential(*stem),
        stages,
        channels,
        nn.ReLU(),
        inputs,
        num_classes,
        None,
        _aliases(depth, width),
    )
    initialise_convolutions(network)
    return network


def _aliases(depth: int, width: int) -> tuple[tuple[str, str], ...]:
    blocks = (depth - 4) // 6
    moved = [(r"^block1\.layer\.0\.bn1\.", "stem.1.")] if width > 1 else []
    moved += [(rf"^block{i + 2}\.layer\.0\.bn1\.", f"stages.{i}.{blocks}.") for i in range(2)]
    return (
        (r"^conv1\.", "stem.0."),
        *moved,
        (r"^bn1?\.", f"stages.2.{blocks}."),
        *(
            (rf"^block{i + 1}\.layer\.(\d+)\.convShortcut\.", rf"stages.{i}.\1.shortcut.")
            for i in range(3)
        ),
        *((rf"^block{i + 1}\.layer\.", f"stages.{i}.") for i in range(3)),
        (r"^fc\.", "classifier."),
    )
