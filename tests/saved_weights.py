"""Networks whose weights are saved, loaded and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ndfast.train.errors import ConfigError
from ndfast.train.models import build_model
from ndfast.train.models.weights import load_weights, weights_digest

MODEL = "convnet4"


def build(name: str = MODEL) -> nn.Module:
    """Two calls give different weights, and different statistics of normalisation."""
    network = build_model(name, 10, (3, 32, 32))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert weights_digest(first) == weights_digest(second)


def assert_read(path: Path, saved: nn.Module, name: str = MODEL) -> None:
    loaded = build(name)
    load_weights(loaded, path)
    assert_same(saved, loaded)


def assert_refused(path: Path, sentence: str, name: str = MODEL) -> None:
    network = build(name)
    before = weights_digest(network)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_weights(network, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert weights_digest(network) == before
