"""The training harness on a GPU: precisions, scaler, and that a resumed run ends bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")
pytest.importorskip("rich", reason="needs the extra [train]")
pytest.importorskip("jinja2", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [train]")

from accelerate.state import AcceleratorState
from rich.console import Console

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.runs.run import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_ends_bit_for_bit(precision: str, tmp_path: Path) -> None:
    def train(out: str, **fields: Any) -> dict[str, Any]:
        AcceleratorState._reset_state()  # one process has one precision otherwise
        config = TrainConfig(
            data="synthetic:256,10,3x32x32",
            model="resnet8x4",
            teacher="resnet20",
            epochs=2,
            batch_size=32,
            distill_warmup=0,
            precision=precision,
            channels_last=True,
            ema=0.9,
            out=str(tmp_path / out),
            **fields,
        )
        return run(config, Console(quiet=True))

    unbroken = train("unbroken")
    assert unbroken["environment"]["device"].startswith("cuda")
    assert unbroken["skipped"] == 0
    train("broken", max_steps=5)
    checkpoint = next((tmp_path / "broken" / "checkpoints").iterdir())
    assert (checkpoint / "scaler.pt").exists() == (precision == "fp16")
    resumed = train("broken", resume=True)
    assert resumed["sha256"] == unbroken["sha256"]


def test_nothing_waits_for_the_gpu_but_the_finite_check(tmp_path: Path) -> None:
    from accelerate import Accelerator

    from ndfast.train.engine.finite import FiniteCheck

    AcceleratorState._reset_state()
    check = FiniteCheck(Accelerator())
    loss = torch.tensor([1.0, float("nan")], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        check.watch(loss[0])
        check.watch(loss[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not check.all_finite()
