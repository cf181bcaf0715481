"""What Accelerate is asked for: the run's flags decide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from small_runs import quiet_run, small_config

from ndfast.train.errors import ConfigError
from ndfast.train.processes import build_accelerator


def test_the_environment_neither_accumulates_nor_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"method": "ce", "max_steps": 3}
    plain = quiet_run(tmp_path / "plain", **fields)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert quiet_run(tmp_path / "set", **fields)["sha256"] == plain["sha256"]


@pytest.mark.parametrize(
    ("flag", "environment", "precision"),
    [
        (None, None, "no"),
        (None, "BF16", "bf16"),
        (None, "fp32", "no"),
        ("fp32", "bf16", "no"),
        ("fp32", "fp8", "no"),
        ("bf16", "no", "bf16"),
    ],
)
def test_the_flag_decides_the_precision(
    flag: str | None,
    environment: str | None,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if environment is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    found = build_accelerator(small_config(tmp_path, precision=flag))
    assert found.mixed_precision == precision


@pytest.mark.parametrize(
    ("environment", "takes"),
    [("fp8", "fp8 of Accelerate; it takes fp32, bf16 or fp16"), ("fp16", "fp16; on the CPU")],
)
def test_a_precision_of_the_environment_that_is_not_taken(
    environment: str, takes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    with pytest.raises(ConfigError, match=f"precision: got {takes}"):
        build_accelerator(small_config(tmp_path))
