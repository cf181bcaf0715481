"""timm's models as the harness takes them: features, stages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # before timm
pytest.importorskip("timm", reason="needs the extra [train]")

import timm

from ndfast.train.errors import ConfigError
from ndfast.train.models import build_model
from ndfast.train.models.weights import load_weights

IMAGES = (3, 64, 64)

# name, D, (channels, side) of the stages at 64x64
SMALL = [
    ("resnet18", 512, ((64, 16), (128, 8), (256, 4), (512, 2))),
    ("mobilenetv1_100", 1024, ((128, 16), (256, 8), (512, 4), (1024, 2))),
    ("regnety_002", 368, ((24, 16), (56, 8), (152, 4), (368, 2))),
    # D is the head's width, not that of the last stage
    ("mobilenetv3_small_050", 1024, ((8, 16), (16, 8), (24, 4), (288, 2))),
    # all of its blocks have one resolution
    ("vit_tiny_patch16_224", 192, ((192, 4),)),
    ("deit_tiny_patch16_224", 192, ((192, 4),)),
]
LARGE = [
    ("deit_base_patch16_224", 768, ((768, 4),)),
    ("regnety_160", 3024, ((224, 16), (448, 8), (1232, 4), (3024, 2))),
]


@pytest.mark.parametrize(
    ("name", "dim", "stages"),
    [*SMALL, *(pytest.param(*model, marks=pytest.mark.slow) for model in LARGE)],
)
def test_outputs(name: str, dim: int, stages: tuple[tuple[int, int], ...], seed: int) -> None:
    network = build_model(f"timm:{name}", 10, IMAGES)
    assert network.training
    network.eval()
    images = torch.randn(2, *IMAGES)
    output = network(images)
    assert network.dim == dim
    assert output.features.shape == (2, dim)
    assert [tuple(stage.shape) for stage in output.stages] == [
        (2, channels, side, side) for channels, side in stages
    ]
    assert network.stage_channels == tuple(channels for channels, _ in stages)
    assert isinstance(network.classifier, nn.Linear)
    torch.testing.assert_close(network.classifier(output.features), output.logits)
    torch.testing.assert_close(output.logits, network.timm_model(images))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_gradients(name: str, seed: int) -> None:
    network = build_model(f"timm:{name}", 10, (1, 32, 32))
    output = network(torch.randn(2, 1, 32, 32))
    parts = [output.features, output.logits, *output.stages]
    sum((part * torch.randn_like(part)).sum() for part in parts).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_as_initialised_by_timm() -> None:
    # Looking at a model must not draw from the generator that decides the rest of a training.
    torch.manual_seed(5)
    ours = build_model("timm:regnety_002", 10, IMAGES)
    after_ours = torch.get_rng_state()
    torch.manual_seed(5)
    theirs = timm.create_model("regnety_002", num_classes=10)
    assert torch.equal(torch.get_rng_state(), after_ours)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.timm_model.state_dict()[name], value), name


def test_without_intermediate_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.resnet.ResNet, "forward_intermediates")
    network = build_model("timm:resnet18", 10, IMAGES)
    assert network.stage_channels == ()
    assert network(torch.zeros(2, *IMAGES)).stages == ()


@pytest.mark.parametrize("prefix", ["", "timm_model."])
def test_weights_by_either_name(prefix: str, tmp_path: Path) -> None:
    theirs = timm.create_model("regnety_002", num_classes=10)
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    torch.save({"model": state}, tmp_path / "weights.pth")
    network = build_model("timm:regnety_002", 10, IMAGES)
    load_weights(network, tmp_path / "weights.pth")
    images = torch.ones(1, *IMAGES)
    assert torch.equal(network.eval()(images).logits, theirs.eval()(images))


@pytest.mark.parametrize(
    ("name", "image_shape", "pretrained", "sentence"),
    [
        ("resnet81", IMAGES, False, "has no such model; did you mean timm:resnet18[12]?"),
        ("deit_tiny_distilled_patch16_224", IMAGES, False, "classifier is 2 layers; it takes one"),
        ("resnetv2_50x1_bit", IMAGES, False, "classifier is a Conv2d; it takes one nn.Linear"),
        ("resnet18", (3, 64), False, r"got images of shape \(3, 64\); it takes \(C, H, W\)"),
        ("vit_tiny_patch16_224", (3, 8, 8), False, r"cannot take images \(3, 8, 8\): .*size"),
        ("inception_v3", (3, 32, 32), False, r"cannot take images \(3, 32, 32\): .*size"),
        ("cs3darknet_s", IMAGES, True, "its weights cannot be had: No pretrained weights exist"),
    ],
)
def test_refused(name: str, image_shape: tuple[int, ...], pretrained: bool, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model timm:{name}: [^\n]*{sentence}[^\n]*$"):
        build_model(f"timm:{name}", 1000, image_shape, pretrained)


def test_a_pretrained_classifier_of_other_classes_teaches_nothing() -> None:
    sentence = "its pretrained classifier has 1000 classes, the data has 10"
    with pytest.raises(ConfigError, match=sentence):
        build_model("timm:resnet18", 10, IMAGES, pretrained=True)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    sentence = r"^model timm:resnet18: its weights cannot be had: We couldn't connect to the hub.$"
    with pytest.raises(ConfigError, match=sentence):
        build_model("timm:resnet18", 1000, IMAGES, pretrained=True)


def test_features_that_the_classifier_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = timm.models.resnet.ResNet.forward

    def scaled(self: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return 2 * forward(self, images)

    monkeypatch.setattr(timm.models.resnet.ResNet, "forward", scaled)
    with pytest.raises(ConfigError, match="does not read what timm gives as its features"):
        build_model("timm:resnet18", 10, IMAGES)
