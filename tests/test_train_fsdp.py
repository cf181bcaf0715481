"""FSDP 2: the training is DDP's; what of it is not taken is one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate.utils import DistributedType
from rich.console import Console
from small_detection import small_config as small_detection
from small_runs import quiet_run, run_in_two_processes, small_config

from ndfast.train.detection.run import run as detect
from ndfast.train.errors import ConfigError
from ndfast.train.machine import fsdp
from ndfast.train.machine.processes import build_accelerator

# As `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_state_dict_type FULL_STATE_DICT` has it.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
SCRIPT = (str(Path(__file__).with_name("fsdp_on_cpu.py")),)


def as_flags(fields: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in fields.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


@pytest.mark.slow
def test_a_resumed_run_with_fsdp_ends_as_one_with_ddp(tmp_path: Path) -> None:
    quiet_run(tmp_path / "teacher", model="convnet32", method="ce", epochs=1)
    fields = {
        "teacher_weights": str(tmp_path / "teacher" / "model.safetensors"),
        "method": "reviewkd++",
        "learnable_class_means": True,
        "precision": "bf16",
        "ema": 0.9,
        "accumulate": 2,
        "batch_size": 16,
        "epochs": 2,
    }
    command = ["train", *as_flags(fields)]
    expected = run_in_two_processes(tmp_path / "ddp", *command)
    out = tmp_path / "fsdp"
    stopped = run_in_two_processes(out, *command, "--max-steps", "7", program=SCRIPT, **FSDP)
    assert stopped["steps"] == 7
    assert stopped["sha256"] != expected["sha256"]
    with pytest.raises(ConfigError, match="step-0000000007 was written with FSDP"):
        quiet_run(out, **fields, resume=True)
    found = run_in_two_processes(out, *command, "--resume", program=SCRIPT, **FSDP)
    assert (expected["environment"]["fsdp"], found["environment"]["fsdp"]) == (False, True)
    for name in ("steps", "sha256", "test", "ema", "student"):
        assert found[name] == expected[name]
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "ddp" / name).read_bytes()


def test_weights_in_nhwc_are_laid_out_anew() -> None:
    # fully_shard takes none; the layout decides how a convolution rounds, and so this is apart.
    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace()),
        native_amp=False,
        prepare=lambda *prepared: prepared,
    )
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = model.weight.detach().clone()
    assert not weight.is_contiguous()
    optimizer = torch.optim.SGD(model.parameters())
    prepared, _ = fsdp.prepare(accelerator, model, optimizer)
    assert prepared.weight.is_contiguous()
    assert torch.equal(prepared.weight, weight)
    assert optimizer.param_groups[0]["params"][0] is prepared.weight


@pytest.mark.parametrize(
    ("environment", "fields", "sentence"),
    [
        ({"FSDP_VERSION": "1"}, {}, "FSDP_VERSION=1; it takes 2, by .* --fsdp_version"),
        (
            {"FSDP_STATE_DICT_TYPE": "sharded_state_dict"},
            {},
            "SHARDED_STATE_DICT; it takes FULL_STATE_DICT, by .* --fsdp_state_dict_type",
        ),
        (
            {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"},
            {},
            "SIZE_BASED_WRAP; it takes NO_WRAP or TRANSFORMER_BASED_WRAP",
        ),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "FSDP_OFFLOAD_PARAMS=TRUE; it takes FALSE"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "CHECKPOINTING=TRUE; it takes FALSE"),
        ({"FSDP_IGNORED_MODULES": ".*head"}, {}, r"FSDP_IGNORED_MODULES=\.\*HEAD; it takes NONE"),
        ({}, {"optimizer": "lamb"}, "optimizer: got lamb together with FSDP; it takes sgd"),
        ({}, {}, "FSDP is asked for, with 1 on the cpu; Accelerate has it on GPUs alone"),
    ],
)
def test_what_of_fsdp_is_not_taken(
    environment: dict[str, str],
    fields: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**FSDP, "ACCELERATE_USE_CPU": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence):
        build_accelerator(small_config(tmp_path, **fields))


def test_a_detector_is_not_trained_by_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="ndfast detect takes DDP alone"):
        detect(small_detection(out=str(tmp_path)), Console(quiet=True))
