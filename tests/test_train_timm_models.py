"""timm's models as the harness takes them: features, stages, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision_ops", reason="needs torchvision")  # before timm
pytest.importorskip("timm", reason="needs the extra [train]")

import huggingface_hub
import timm
from safetensors.torch import save_file
from whole_dataset import all_rows

import ndfast
from ndfast.cli import main
from ndfast.train.data import build_data
from ndfast.train.errors import ConfigError
from ndfast.train.models import build_model
from ndfast.train.models.folding import fold_batch_norms
from ndfast.train.models.weights import load_weights, weights_digest

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
    [*SMALL, *(pytest.param(*model, marks=pytest.mark.long) for model in LARGE)],
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
        ("deit_tiny_distilled_patch16_224", IMAGES, False, "classifier is 2 layers; expected one"),
        ("resnetv2_50x1_bit", IMAGES, False, "classifier is a Conv2d; expected one nn.Linear"),
        ("resnet18", (3, 64), False, r"got images of shape \(3, 64\); expected \(C, H, W\)"),
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


Published = Callable[[str], dict[str, torch.Tensor]]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Published:
    """Puts random weights of a model where the hub's client keeps timm's, and gives them.

    There is no network, and nothing else in the cache.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def publish(name: str) -> dict[str, torch.Tensor]:
        repository = timm.get_pretrained_cfg(name).hf_hub_id.replace("/", "--")
        folder, commit = tmp_path / "hub" / f"models--{repository}", "0" * 40
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        weights = {
            key: value + torch.rand_like(value) / 100 if value.is_floating_point() else value
            for key, value in timm.create_model(name).state_dict().items()
        }
        save_file(weights, folder / "snapshots" / commit / "model.safetensors")
        return weights

    return publish


@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "resnet18"]
)
def test_pretrained_weights_are_the_published_ones(name: str, published: Published) -> None:
    weights = published(name)
    found = build_model(f"timm:{name}", 1000, (3, 224, 224), pretrained=True).timm_model
    assert found.state_dict().keys() == weights.keys()
    for key, value in found.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_a_pretrained_teacher_is_told_of_in_its_class_means(
    published: Published, tmp_path: Path
) -> None:
    weights = published("resnet18.tv_in1k")
    out = tmp_path / "means.npz"
    flags = ["--teacher", "timm:resnet18.tv_in1k", "--teacher-weights", "pretrained"]
    flags += ["--data", "synthetic:1000,1000,3x32x32", "--out", str(out)]
    assert main(["class-means", *flags]) == 0
    metadata = ndfast.load_class_means_metadata(out)
    network = build_model("timm:resnet18", 1000, (3, 32, 32))
    network.timm_model.load_state_dict(weights)
    assert metadata["teacher_sha256"] == weights_digest(network)
    images, labels = all_rows(build_data("synthetic:1000,1000,3x32x32").train)
    with torch.no_grad():
        features = network.eval()(images).features
    assert labels.tolist() == list(range(1000))
    torch.testing.assert_close(ndfast.load_class_means(out), features)


def test_neither_network_nor_cache(published: Published, capsys: pytest.CaptureFixture) -> None:
    published("resnet34.tv_in1k")  # of another model
    flags = ["--recipe", "imagenet-resnet50-resnet18", "--data", "synthetic:1000,1000,3x32x32"]
    assert main(["train", *flags, "--batch-size", "8", "--workers", "0"]) == 2
    error = capsys.readouterr().err
    sentence = "model timm:resnet50.tv_in1k: its weights cannot be had: An error happened while"
    assert error.startswith(f"ndfast train: {sentence}")
    assert error.count("\n") == 1


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


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("regnety_002", 44)])
@torch.no_grad()
def test_of_a_teacher_pytorchs_own_norms_are_folded(name: str, left: int, seed: int) -> None:
    """RegNet's hold their activation, as a subclass of timm's, and stay."""
    network = build_model(f"timm:{name}", 10, (3, 64, 64)).eval()
    images = torch.randn(2, 3, 64, 64)
    before = network(images)
    fold_batch_norms(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == left
    torch.testing.assert_close(network(images).logits, before.logits, rtol=1e-4, atol=1e-5)
