"""The networks: sizes as published, blocks worked out by hand, features and stages of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndfast.train.errors import ConfigError
from ndfast.train.models import MODELS, Output, build_model
from ndfast.train.models.mobilenet import InvertedResidual
from ndfast.train.models.resnet import BasicBlock, Bottleneck
from ndfast.train.models.shufflenet import DownUnit, SplitUnit, Unit
from ndfast.train.models.wide_resnet import Block

CIFAR = (3, 32, 32)


class Expected(NamedTuple):
    """With 100 classes and 32x32 images; a stage is (channels, side)."""

    parameters: int
    dim: int
    stages: tuple[tuple[int, int], ...]


THIN = ((16, 32), (32, 16), (64, 8))
TWICE = ((32, 32), (64, 16), (128, 8))
FOURFOLD = ((64, 32), (128, 16), (256, 8))
VGG = ((128, 16), (256, 8), (512, 4), (512, 4))

# The counts of mdistiller's networks (megvii-research/mdistiller, mdistiller/models/cifar), which
# the KD papers round: ResNet-20 0.28M, WRN-40-2 2.26M, MobileNetV2 0.81M. ConvNet is ndfast's own.
EXPECTED = {
    "convnet4": Expected(3_304, 16, ((4, 32), (8, 16), (16, 8))),
    "convnet32": Expected(106_372, 128, TWICE),
    "resnet20": Expected(278_324, 64, THIN),
    "resnet32": Expected(472_756, 64, THIN),
    "resnet56": Expected(861_620, 64, THIN),
    "resnet110": Expected(1_736_564, 64, THIN),
    "resnet8x4": Expected(1_233_540, 256, FOURFOLD),
    "resnet32x4": Expected(7_433_860, 256, FOURFOLD),
    "resnet50": Expected(23_705_252, 2048, ((256, 32), (512, 16), (1024, 8), (2048, 4))),
    "wrn_16_2": Expected(703_284, 128, TWICE),
    "wrn_40_1": Expected(569_780, 64, THIN),
    "wrn_40_2": Expected(2_255_156, 128, TWICE),
    "vgg8": Expected(3_965_028, 512, VGG),
    "vgg13": Expected(9_462_180, 512, VGG),
    "mobilenetv2": Expected(812_836, 1280, ((12, 16), (16, 8), (48, 4), (160, 2))),
    "shufflenetv1": Expected(949_258, 960, ((240, 16), (480, 8), (960, 4))),
    "shufflenetv2": Expected(1_355_528, 1024, ((116, 16), (232, 8), (464, 4))),
}


def test_every_network_is_expected() -> None:
    assert set(EXPECTED) == set(MODELS)


@pytest.mark.parametrize("name", EXPECTED)
def test_sizes(name: str) -> None:
    with torch.device("meta"):
        network = build_model(name, 100, CIFAR)
    expected = EXPECTED[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == expected.parameters
    assert network.dim == expected.dim
    assert network.stage_channels == tuple(channels for channels, _ in expected.stages)


@pytest.mark.parametrize("name", EXPECTED)
def test_outputs_and_gradients(name: str, seed: int) -> None:
    network = build_model(name, 100, CIFAR)
    output = network(torch.randn(2, *CIFAR))
    expected = EXPECTED[name]
    assert isinstance(output, Output)
    assert output.features.shape == (2, expected.dim)
    assert output.logits.shape == (2, 100)
    assert [tuple(stage.shape) for stage in output.stages] == [
        (2, channels, side, side) for channels, side in expected.stages
    ]
    assert network.classifier.weight.shape == (100, expected.dim)
    torch.testing.assert_close(network.classifier(output.features), output.logits)
    assert_gradients_reach_all(network, output)


def assert_gradients_reach_all(network: nn.Module, output: Output) -> None:
    parts = [output.features, output.logits, *output.stages]
    sum((part * torch.randn_like(part)).sum() for part in parts).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.dim() == 1 or parameter.grad.any(), name


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("convnet4", F.silu),
        ("resnet8x4", F.relu),
        ("wrn_16_2", F.relu),
        ("vgg8", F.relu),
        ("shufflenetv1", F.relu),
    ],
)
def test_features_are_the_mean_of_the_active_last_stage(
    name: str, activation: type, seed: int
) -> None:
    output = build_model(name, 10, CIFAR)(torch.randn(2, *CIFAR))
    assert all((stage < 0).any() for stage in output.stages)
    torch.testing.assert_close(output.features, activation(output.stages[-1]).mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "shufflenetv1", "shufflenetv2"])
def test_what_follows_a_stage_begins_with_its_relu(name: str, seed: int) -> None:
    network = build_model(name, 10, CIFAR).eval()
    stages = network(torch.randn(2, *CIFAR)).stages
    for before, follower in zip(stages, [*network.stages[1:], network.head], strict=True):
        assert torch.equal(follower(before), follower(F.relu(before)))
        assert not torch.equal(follower(before), follower(-before))


# How the authors of ReviewKD and of KD++ have them: a WRN's and a MobileNetV2's without a ReLU.
@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("convnet4", F.silu),
        ("resnet8x4", F.relu),
        ("resnet50", F.relu),
        ("vgg8", F.relu),
        ("shufflenetv1", F.relu),
        ("shufflenetv2", F.relu),
        ("wrn_16_2", None),
        ("mobilenetv2", None),
    ],
)
def test_what_a_students_stages_go_through_before_reviewkd(
    name: str, activation: Callable[[Tensor], Tensor] | None
) -> None:
    assert build_model(name, 10, CIFAR).before_fusion is activation


def test_what_follows_a_stage_of_a_convnet_begins_with_silu(seed: int) -> None:
    network = build_model("convnet4", 10, CIFAR).eval()
    stages = network(torch.randn(2, *CIFAR)).stages
    for before, after, follower in zip(stages, stages[1:], network.stages[1:], strict=False):
        torch.testing.assert_close(follower[1:](F.silu(before)), after)


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2"])
def test_heads_end_with_relu(name: str, seed: int) -> None:
    features = build_model(name, 10, CIFAR)(torch.randn(2, *CIFAR)).features
    assert (features >= 0).all()
    assert features.any()


@pytest.mark.parametrize("name", ["wrn_16_2", "wrn_40_1"])
def test_stages_of_a_wide_resnet_are_normalised(name: str, seed: int) -> None:
    for stage in build_model(name, 10, CIFAR)(torch.randn(4, *CIFAR)).stages:
        mean, variance = stage.mean(dim=(0, 2, 3)), stage.var(dim=(0, 2, 3), unbiased=False)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0)


# Blocks by hand. Each convolution's kernel is its factor at its centre, from the first channel to
# the first; normalisation in evaluation mode does nothing but for its eps.


def with_factors(block: nn.Module, *factors: float) -> nn.Module:
    convolutions = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    for convolution, factor in zip(convolutions, factors, strict=True):
        nn.init.zeros_(convolution.weight)
        size = convolution.kernel_size[0]
        convolution.weight.data[0, 0, size // 2, size // 2] = factor
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-30  # torch 2.10 takes no 0
    return block.eval()


def one_pixel(*channels: float) -> Tensor:
    return torch.tensor(channels).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("block", "factors", "image", "expected"),
    [
        # relu(x) + 2·3·relu(x)
        (BasicBlock(1, 1, 1), (2, 3), (1.0,), (7.0,)),
        (BasicBlock(1, 1, 1), (2, 3), (-1.0,), (0.0,)),
        # its inner ReLU, and none at its end
        (BasicBlock(1, 1, 1), (-2, 3), (1.0,), (1.0,)),
        (BasicBlock(1, 1, 1), (2, -3), (1.0,), (-5.0,)),
        # a convolution in the shortcut
        (BasicBlock(1, 2, 1), (2, 3, 10), (1.0,), (16.0, 0.0)),
        (BasicBlock(1, 1, 2), (2, 3, 10), (1.0,), (16.0,)),
        (Bottleneck(4, 1, 1), (2, 3, 5), (1.0, -1.0, 2.0, 0.0), (31.0, 0.0, 2.0, 0.0)),
        (Bottleneck(4, 1, 1), (2, -3, 5), (1.0, -1.0, 2.0, 0.0), (1.0, 0.0, 2.0, 0.0)),
        (Bottleneck(2, 1, 1), (2, 3, 5, 10), (1.0, 9.0), (40.0, 0.0, 0.0, 0.0)),
        # x + 2·3·relu(x): this shortcut is of x itself
        (Block(1, 1, 1), (2, 3), (1.0,), (7.0,)),
        (Block(1, 1, 1), (2, 3), (-1.0,), (-1.0,)),
        (Block(1, 2, 1), (2, 3, 10), (1.0,), (16.0, 0.0)),
        (Block(1, 2, 1), (2, 3, 10), (-1.0,), (0.0, 0.0)),
        # no ReLU before or after, two within
        (InvertedResidual(1, 1, 1, 1), (2, 3, 5), (1.0,), (31.0,)),
        (InvertedResidual(1, 1, 1, 1), (2, 3, 5), (-1.0,), (-1.0,)),
        (InvertedResidual(1, 1, 1, 1), (2, 3, -5), (1.0,), (-29.0,)),
        (InvertedResidual(1, 1, 2, 1), (2, 3, 5), (1.0,), (30.0,)),
        # a quarter of the channels within
        (Unit(4, 4, 1, 1), (2, 3, 5), (1.0, -1.0, 2.0, 0.0), (31.0, 0.0, 2.0, 0.0)),
        # convolved first, then the input, pooled over 9 places of which 8 are padding
        (Unit(4, 8, 2, 1), (2, 3, -5), (9.0, -1.0, 18.0, 0.0), (-270.0, 0, 0, 0, 1.0, 0, 2.0, 0)),
        # (a, b) passes, (c, d) is convolved; in turns from either half
        (SplitUnit(4), (2, 3, -5), (1.0, -2.0, 3.0, 4.0), (1.0, -90.0, 0.0, 0.0)),
        # no ReLU between the depthwise and the pointwise convolution
        (SplitUnit(4), (2, -3, 5), (1.0, -2.0, 3.0, 4.0), (1.0, -90.0, 0.0, 0.0)),
        (DownUnit(1, 2), (-2, 3, 5, -7, 11), (1.0,), (-6.0, -385.0)),
        (DownUnit(1, 4), (2, 3, 5, 7, 11), (1.0,), (6.0, 385.0, 0.0, 0.0)),
        (DownUnit(1, 2), (2, 3, -5, 7, 11), (-1.0,), (0.0, 0.0)),
    ],
)
def test_blocks_by_hand(
    block: nn.Module,
    factors: tuple[float, ...],
    image: tuple[float, ...],
    expected: tuple[float, ...],
) -> None:
    outputs = with_factors(block, *factors)(one_pixel(*image))
    torch.testing.assert_close(outputs, one_pixel(*expected))


def test_shuffle(seed: int) -> None:
    # Without its depthwise and last convolutions a unit of two groups mixes nothing: each of its
    # eight inner channels is told by its factor.
    unit = Unit(32, 32, 1, 2).eval()
    nn.init.zeros_(unit.conv1.weight)
    for channel in range(8):
        unit.conv1.weight.data[channel, 0, 0, 0] = 1.0 + channel
    seen: list[Tensor] = []
    unit.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    unit(torch.ones(1, 32, 1, 1))
    expected = F.channel_shuffle(one_pixel(*range(1, 9)).float(), 2)
    torch.testing.assert_close(seen[0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("convnet32", (1, 40)),
        ("convnet4", (2, 7)),
        ("convnet32", (1, 8, 8)),
        ("resnet20", (1, 8, 8)),
        ("wrn_16_2", (4, 12, 20)),
        ("mobilenetv2", (3, 64, 48)),
        ("shufflenetv1", (1, 17, 9)),
        ("vgg8", (3, 64, 64)),
    ],
)
def test_other_images(name: str, image_shape: tuple[int, ...], seed: int) -> None:
    network = build_model(name, 7, image_shape)
    output = network(torch.randn(2, *image_shape))
    assert output.logits.shape == (2, 7)
    assert tuple(stage.shape[1] for stage in output.stages) == network.stage_channels
    assert {stage.dim() for stage in output.stages} == {1 + len(image_shape)}
    torch.testing.assert_close(network.classifier(output.features), output.logits)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("resnet21", 10, CIFAR),
            r"^model: got 'resnet21'; expected .*vgg8.*; did you mean resnet",
        ),
        (("nothing", 10, CIFAR), r"^model: got 'nothing'; expected convnet32.* or timm:NAME$"),
        (
            ("resnet20", 10, (1, 40)),
            r"^model resnet20: got images of shape \(1, 40\); expected \(C",
        ),
        (("resnet20", 10, (3, 8, 3)), r"shape \(3, 8, 3\); expected .* H and W of 4 or more$"),
        (("resnet50", 10, (3, 7, 8)), r"H and W of 8 or more$"),
        (("mobilenetv2", 10, (3, 15, 99)), r"H and W of 16 or more$"),
        (("convnet4", 10, (1, 3)), r"expected \(C, L\) or \(C, H, W\) with sides of 4 or more$"),
        (("convnet4", 10, (1,)), r"^model convnet4: got images of shape \(1,\)"),
        (("resnet20", 10, CIFAR, True), r"^model resnet20: has no pretrained weights; timm's"),
    ],
)
def test_refused(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_model(*arguments)
