"""Batch normalisation folded into convolutions: the same function, and only where it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs the extra [train]")

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.distill.evaluation import move
from ndfast.train.distill.teacher import freeze
from ndfast.train.models import MODELS, build_model
from ndfast.train.models.folding import fold_batch_norms

NORMS = nn.BatchNorm1d, nn.BatchNorm2d
# Before each of the others stands an activation, or a sum, in place of a convolution.
LEFT = {"wrn_16_2": 6, "wrn_40_1": 19, "wrn_40_2": 18}


def draw_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_networks_of_the_harness(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, 10, (3, 32, 32)).double().eval()
    draw_norms(network)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = network(images)
    fold_batch_norms(network)
    after = network(images)
    assert count_norms(network) == LEFT.get(name, 0)
    for ours, theirs in zip(
        (after.features, after.logits, *after.stages),
        (before.features, before.logits, *before.stages),
        strict=True,
    ):
        assert (ours - theirs).norm() <= 1e-13 * theirs.norm()


class TwoUses(nn.Module):
    """What the convolution gives is used beside its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        return maps + self.norm(maps)


class CalledTwice(TwoUses):
    """Its convolution, or its norm, is called twice, once under another name."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.shared = getattr(self, shared)
        self.is_norm = shared == "norm"

    def forward(self, images: Tensor) -> Tensor:
        first = self.norm(self.convolution(images))
        again = self.shared(first) if self.is_norm else self.shared(images)
        return first + again


class Aliased(TwoUses):
    """Its convolution, or its norm, has a second name, and is called by that."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.second = nn.ModuleList([getattr(self, name)])
        self.is_norm = name == "norm"

    def forward(self, images: Tensor) -> Tensor:
        if self.is_norm:
            return self.second[0](self.convolution(images))
        return self.norm(self.second[0](images))


class WeightRead(TwoUses):
    """The convolution's weight is used beside its call."""

    def forward(self, images: Tensor) -> Tensor:
        again = nn.functional.conv2d(images, self.convolution.weight)
        return self.norm(self.convolution(images)) + again


class DependsOnData(TwoUses):
    """torch.fx cannot follow it."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images if images.sum() > 0 else -images))


class Functional(TwoUses):
    """No module stands between the convolution and its norm, but something does."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images).relu())


@pytest.mark.parametrize(
    "network",
    [
        TwoUses(),
        CalledTwice("norm"),
        CalledTwice("convolution"),
        Aliased("norm"),
        Aliased("convolution"),
        WeightRead(),
        DependsOnData(),
        Functional(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    ],
    ids=lambda network: type(network).__name__,
)
@torch.no_grad()
def test_others_stay_as_they_are(network: nn.Module) -> None:
    torch.manual_seed(0)
    network.eval()
    for module in network.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            draw_norms(module)
    images = torch.randn(2, 3, 8, 8)
    before, norms = network(images), count_norms(network)
    fold_batch_norms(network)
    assert torch.equal(network(images), before)
    assert count_norms(network) == norms


def test_a_frozen_teacher_is_folded_and_in_nhwc_on_the_cpu() -> None:
    cpu, images = torch.device("cpu"), torch.randn(2, 3, 32, 32)
    for asked, in_nhwc in ((None, True), (True, True), (False, False)):
        config = TrainConfig(channels_last=asked)
        teacher = freeze(build_model("resnet20", 10, (3, 32, 32)), config, cpu)
        assert count_norms(teacher) == 0
        weight = teacher.stem[0].weight  # type: ignore[union-attr, index]
        for tensor in (weight, move(images, cpu, config)):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == in_nhwc


@torch.no_grad()
def test_signals_and_a_norm_without_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 3, 3, bias=False), nn.BatchNorm1d(3, affine=False)).eval()
    network[1].running_mean.normal_()  # type: ignore[union-attr, operator]
    signals = torch.randn(2, 2, 9)
    before = network(signals)
    fold_batch_norms(network)
    assert count_norms(network) == 0
    torch.testing.assert_close(network(signals), before)
