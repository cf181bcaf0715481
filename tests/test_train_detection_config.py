"""The config of `ndfast detect`: a sentence for each value that is not taken."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs the extra [train]")

from ndfast.cli import main
from ndfast.train.config.detection_config import DetectionConfig
from ndfast.train.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "large"}, "model: got 'large'; expected tiny, small, or torchvision:NAME"),
        ({"methods": ("kd", "dkd")}, "methods: got 'dkd'; expected ce, kd, kd++"),
        ({"methods": ()}, "methods: got none; expected one or more"),
        ({"anchor_sizes": ()}, "anchor_sizes: got none; expected one or more"),
        ({"model": 3}, "model: got 3; expected a string"),
        ({"methods": ("kd", 3)}, "methods: got ('kd', 3); expected strings"),
        ({"methods": "kd"}, "methods: got 'kd'; expected strings"),
        ({"images": 2.5}, "images: got 2.5; expected an integer"),
        ({"images": None}, "images: got None; expected an integer"),
        ({"rows": True}, "rows: got True; expected an integer"),
        ({"nd_background": 1}, "nd_background: got 1; expected true or false"),
        ({"kd_weight": float("inf")}, "kd_weight: got inf; expected a finite number"),
        ({"optimizer": "lamb"}, "optimizer: got 'lamb'; expected adamw, sgd"),
        ({"backend": "fast"}, "backend: got 'fast'; expected "),
        ({"max_skipped": 0}, "max_skipped: got 0; expected 1 or more"),
        ({"resume": True, "overwrite": True}, "resume: got it together with overwrite"),
        ({"epochs": 0}, "epochs: got 0; expected 1 or more"),
        ({"lr": float("nan")}, "lr: got nan; expected a finite number"),
        ({"momentum": float("nan")}, "momentum: got nan; expected a finite number"),
        ({"anchor_sizes": (8, 0)}, "anchor_sizes: got (8, 0); expected integers above 0"),
    ],
)
def test_options_that_are_not_taken(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DetectionConfig(**fields)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("name", [item.name for item in fields(DetectionConfig)])
@pytest.mark.parametrize("value", [{}, float("-inf"), (None,)])
def test_every_field_is_looked_at(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        DetectionConfig(**{name: value})
    assert str(raised.value).startswith(f"{name}: got {value}; expected ")


@pytest.mark.parametrize(
    "item",
    [item for item in fields(DetectionConfig) if str(item.type).startswith(("int", "float"))],
)
def test_a_number_below_its_range_ends_the_command(
    item: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flag = f"--{item.name.replace('_', '-')}"
    assert main(["detect", "--out", str(tmp_path / "run"), f"{flag}=-1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{item.name}: got -1" in error
    assert not (tmp_path / "run").exists()
