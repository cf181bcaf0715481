"""float16 with a scaled loss, which Accelerate has on GPUs alone: put in by hand on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_runs import quiet_run

from ndfast.train.config.train_config import TrainConfig
from ndfast.train.machine import processes
from ndfast.train.runs import run

# Too large at first, and raised again soon: steps are left out, and the scale keeps changing.
SCALE = {"init_scale": 2.0**24, "growth_interval": 3}


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Makes fp16 train on the CPU as on a GPU; the scalers of the runs."""
    built: list[Any] = []
    build = run.build_accelerator

    def build_for_float16(config: TrainConfig) -> Accelerator:
        if AcceleratorState._shared_state:  # of the teacher's run
            AcceleratorState._shared_state["_mixed_precision"] = "no"
        accelerator = build(replace(config, precision="fp32"))
        if config.precision == "fp16":
            accelerator.state._mixed_precision = "fp16"
            accelerator.native_amp = True
            accelerator.scaler = torch.amp.GradScaler("cpu", **SCALE)
            built.append(accelerator.scaler)
        return accelerator

    for module in (processes, run):  # a command's, and those of the trainings within it
        monkeypatch.setattr(module, "build_accelerator", build_for_float16)
    yield built
    AcceleratorState._reset_state()


def fp16_run(out: Path, **fields: Any) -> dict[str, Any]:
    return quiet_run(out, precision="fp16", teacher="convnet4", ema=0.9, **fields)


def test_a_resumed_run_ends_bit_for_bit_with_its_scale(tmp_path: Path, scalers: list[Any]) -> None:
    unbroken = fp16_run(tmp_path / "unbroken")
    _, of_student, _ = scalers  # the others are the command's and the teacher's
    scale = of_student.state_dict()
    assert scale["scale"] < SCALE["init_scale"]
    fp16_run(tmp_path / "broken", max_steps=7)
    (checkpoint,) = (tmp_path / "broken" / "checkpoints").iterdir()
    saved = torch.load(checkpoint / "scaler.pt", weights_only=True)
    assert saved["scale"] < SCALE["init_scale"]
    scalers.clear()
    resumed = fp16_run(tmp_path / "broken", resume=True)
    assert resumed["sha256"] == unbroken["sha256"]
    assert scalers[1].state_dict() == scale


@pytest.mark.usefixtures("scalers")
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_training_in_float16_is_that_in_float32(
    clip_norm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALE, "init_scale", 2.0**12)
    monkeypatch.setitem(SCALE, "growth_interval", 1000)
    losses = []
    for precision in ("fp32", "fp16"):
        fields = {"teacher": "convnet4", "precision": precision, "clip_norm": clip_norm}
        found = quiet_run(tmp_path / precision, **fields)
        losses.append(found["epochs"][-1]["train"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] != losses[0]  # it was rounded
