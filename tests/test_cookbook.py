"""The cookbook's table of weights is what the recipes train with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.recipes import FOLDER, load_recipe, recipe_names

PAGE = (Path(__file__).parents[1] / "docs" / "cookbook.md").read_text(encoding="utf-8")
METHODS = ("kd++", "dkd++", "dist++", "reviewkd++")
NOT_THE_AUTHORS = ("digits", "mnist1d", "imagenet-resnet34-resnet18-large_batch")


def cell(name: str, method: str) -> str:
    """The ND weight and, in brackets, that of the distillation; of a method that the pair has."""
    base = method.removesuffix("++")
    if base != "kd" and f"\n[{base}]\n" not in (FOLDER / f"{name}.toml").read_text():
        return ""
    config = TrainConfig(**load_recipe(name, method))
    return f"{config.nd_weight} ({config.distill_weight})"


def test_the_table_of_weights() -> None:
    rows = re.findall(r"^\| (CIFAR-100|ImageNet): (\w+) to (\w+) \|(.*)\|$", PAGE, re.M)
    found = {
        f"{data.lower().replace('-', '')}-{teacher}-{student}": [
            part.strip() for part in cells.split("|")
        ]
        for data, teacher, student, cells in rows
    }
    assert found == {
        name: [cell(name, method) for method in METHODS]
        for name in recipe_names()
        if name not in NOT_THE_AUTHORS
    }


def test_the_defaults_that_it_explains() -> None:
    from ndfast.train.config.detection_config import DetectionConfig

    assert (TrainConfig().nd_weight, DetectionConfig().nd_weight) == (2.0, 1.5)
    assert "`--nd-weight` of `ndfast train` is 2.0, and of `ndfast detect` 1.5" in " ".join(
        PAGE.split()
    )
