"""Weights in files: what is read, what is refused without a trace, and the digest of a network."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from saved_weights import assert_refused, assert_same, build
from torch import Tensor, nn

from ndfast.train.models.weights import load_weights, save_weights, weights_digest


def test_round_trip(tmp_path: Path, seed: int) -> None:
    saved, loaded = build(), build()
    assert weights_digest(saved) != weights_digest(loaded)
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, str(tmp_path / "weights.safetensors"))
    assert_same(saved, loaded)
    assert os.listdir(tmp_path) == ["weights.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pth.tar", ".PTH"])
@pytest.mark.parametrize(
    ("nesting", "prefix"),
    [
        ((), ""),
        (("state_dict",), "module."),
        (("model",), "_orig_mod."),
        (("model_state",), "module._orig_mod."),
        (("model", "state_dict"), ""),
    ],
)
def test_nested_and_prefixed(
    suffix: str, nesting: tuple[str, ...], prefix: str, tmp_path: Path, seed: int
) -> None:
    saved, loaded = build(), build()
    content: dict[str, Any] = {prefix + name: v for name, v in saved.state_dict().items()}
    for key in nesting:
        content = {"epoch": 240, key: content, "options": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / f"weights{suffix}")
    load_weights(loaded, tmp_path / f"weights{suffix}")
    assert_same(saved, loaded)


def test_checkpoint_of_a_training(tmp_path: Path, seed: int) -> None:
    saved, loaded = build(), build()
    state = {f"network.{name}": value for name, value in saved.state_dict().items()}
    state |= {"projector.0.weight": torch.ones(16), "nd.class_means": torch.ones(10, 16)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    load_weights(loaded, tmp_path / "model.safetensors")
    assert_same(saved, loaded)


def test_half_precision_and_no_counters(tmp_path: Path, seed: int) -> None:
    saved, loaded = build(), build()
    state = {name: v.half() for name, v in saved.state_dict().items() if "num_batches" not in name}
    safetensors.torch.save_file(state, tmp_path / "half.safetensors")
    load_weights(loaded, tmp_path / "half.safetensors")
    for name, value in state.items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], value.float()), name


RESNET = [("conv1", "stem.0"), ("bn1", "stem.1")]
for stage in range(3):
    theirs, ours = f"layer{stage + 1}.0", f"stages.{stage}.0"
    RESNET += [(f"{theirs}.{part}", f"{ours}.{part}") for part in ("conv1", "bn1", "conv2", "bn2")]
    RESNET += [(f"{theirs}.downsample.{i}", f"{ours}.shortcut.{i}") for i in range(2)]
WIDE = [("conv1", "stem.0"), ("block1.layer.0.bn1", "stem.1"), ("bn1", "stages.2.2")]
WIDE += [("block2.layer.0.bn1", "stages.0.2"), ("block3.layer.0.bn1", "stages.1.2")]
for stage in range(3):
    theirs, ours = f"block{stage + 1}.layer", f"stages.{stage}"
    WIDE += [(f"{theirs}.0.{part}", f"{ours}.0.{part}") for part in ("conv1", "bn2", "conv2")]
    WIDE += [(f"{theirs}.0.convShortcut", f"{ours}.0.shortcut")]
    WIDE += [
        (f"{theirs}.1.{part}", f"{ours}.1.{part}") for part in ("bn1", "conv1", "bn2", "conv2")
    ]
VGG = [("block0.0", "stem.0"), ("block0.1", "stem.1")]
for stage in range(4):
    VGG += [(f"block{stage + 1}.{i}", f"stages.{stage}.convolutions.{i}") for i in range(2)]


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet8x4", [*RESNET, ("fc", "classifier")]),
        ("resnet8x4", [*RESNET, ("linear", "classifier")]),
        ("wrn_16_2", [*WIDE, ("fc", "classifier")]),
        ("vgg8", [*VGG, ("classifier", "classifier")]),
    ],
)
def test_published_names(
    name: str, modules: list[tuple[str, str]], tmp_path: Path, seed: int
) -> None:
    """Names of RepDistiller's checkpoints, which are mdistiller's too."""
    saved, loaded = build(name), build(name)
    published: dict[str, Tensor] = {}
    for theirs, ours in modules:
        for part, value in saved.get_submodule(ours).state_dict().items():
            published[f"{theirs}.{part}"] = value
    assert len(published) == len(saved.state_dict())
    torch.save({"epoch": 240, "model": published}, tmp_path / "ckpt_epoch_240.pth")
    load_weights(loaded, tmp_path / "ckpt_epoch_240.pth")
    assert_same(saved, loaded)


def test_another_network(tmp_path: Path) -> None:
    save_weights(build("resnet20"), tmp_path / "r.safetensors")
    wanted = r"it lacks stages\.0\.3\.conv1\.weight, [^;]* and \d+ more$"
    assert_refused(tmp_path / "r.safetensors", wanted, "resnet32")
    save_weights(build("resnet32"), tmp_path / "r.safetensors")
    assert_refused(tmp_path / "r.safetensors", r"it has besides stages\.0\.3\.", "resnet20")
    save_weights(build("convnet32"), tmp_path / "c.safetensors")
    wanted = r"other shapes: stages\.0\.1\.weight \[32, 3, 3, 3\] in place of \[4, 3, 3, 3\]"
    assert_refused(tmp_path / "c.safetensors", wanted)


def test_a_state_dict_with_something_else(tmp_path: Path) -> None:
    state = build().state_dict()
    torch.save({**state, "epoch": 3}, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", "it has besides epoch$")
    torch.save({**state, "classifier.bias": [0.0] * 10}, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", r"classifier\.bias list in place of \[10\]$")
    itself: dict[str, Any] = {}
    itself["model"] = itself
    torch.save(itself, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", "it has besides model$")
    torch.save(torch.ones(3), tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", "holds Tensor; expected a dict of tensors$")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_else_is_unpickled(tmp_path: Path) -> None:
    torch.save({"model": build().state_dict(), "x": Bomb(tmp_path / "ran")}, tmp_path / "w.pth")
    assert_refused(tmp_path / "w.pth", "holds builtins.getattr; expected tensors, ")
    (tmp_path / "w.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    assert_refused(tmp_path / "w.bin", "holds builtins.getattr; expected tensors, ")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    network = build()
    network.state_dict()["stages.0.2.running_var"][2] = value
    save_weights(network, tmp_path / "w.safetensors")
    wanted = r"NaN or Inf in stages\.0\.2\.running_var; expected finite weights$"
    assert_refused(tmp_path / "w.safetensors", wanted)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    network = build()
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_weights(network, path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path, "cannot be read as weights: it is damaged")


def test_flipped_bits(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(build(), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    # Widest first: the three counters of 8 bytes, which the digest leaves out.
    for at in torch.randint(header + 24, len(whole), (20,)).tolist():
        broken = bytearray(whole)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        assert_refused(path, "its SHA-256 does not fit: the file is damaged$")


def test_no_such_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "w.pth", "cannot be read: No such file or directory$")
    assert_refused(tmp_path / "w.safetensors", "cannot be read: No such file or directory")
    (tmp_path / "d.pth").mkdir()
    assert_refused(tmp_path / "d.pth", "cannot be read: Is a directory$")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, saved, loaded = tmp_path / "w.safetensors", build(), build()
    save_weights(saved, path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            save_weights(build(), path)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    load_weights(loaded, path)
    assert_same(saved, loaded)


def test_digest_sees_any_one_value(seed: int) -> None:
    network = build()
    digests = {weights_digest(network)}
    values = [v for name, v in network.state_dict().items() if "num_batches" not in name]
    for value in values:
        value.view(-1)[torch.randint(value.numel(), ())].add_(1e-3)
        digests.add(weights_digest(network))
    assert len(digests) == 1 + len(values)


def test_digest_sees_names_shapes_and_dtypes() -> None:
    modules = [nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3).half(), nn.Conv1d(2, 3, 1)]
    modules += [nn.Linear(2, 3).bfloat16(), nn.Sequential(nn.Linear(2, 3))]
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    assert len({weights_digest(module) for module in modules}) == len(modules)


def test_digest_does_not_see_layout_or_counters() -> None:
    network = build()
    digest = weights_digest(network)
    assert len(bytes.fromhex(digest)) == 32
    network.to(memory_format=torch.channels_last)
    assert not network.state_dict()["stages.1.1.weight"].is_contiguous()
    assert weights_digest(network) == digest
    weight = network.classifier.weight
    weight.data = weight.data.t().contiguous().t()
    assert weights_digest(network) == digest
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.add_(1)
    assert weights_digest(network) == digest
