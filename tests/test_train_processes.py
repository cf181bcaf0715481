"""What Accelerate is asked for: the run's flags decide."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra [train]")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_runs import quiet_run, small_config

from ndfast.cli import main
from ndfast.train.errors import ConfigError
from ndfast.train.machine.processes import build_accelerator, shut_down
from ndfast.train.runs import run as train_run
from ndfast.train.runs.records import RunLog


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
    [("fp8", "fp8 of Accelerate; expected fp32, bf16 or fp16"), ("fp16", "fp16; on the CPU")],
)
def test_a_precision_of_the_environment_that_is_not_taken(
    environment: str, takes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    with pytest.raises(ConfigError, match=f"precision: got {takes}"):
        build_accelerator(small_config(tmp_path))


@pytest.mark.parametrize(("before", "after"), [(None, "bf16"), ("bf16", None)])
def test_a_run_goes_on_in_its_own_precision_alone(
    before: str | None, after: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def precision_of_environment(precision: str | None) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision or "no")

    fields = {"method": "ce", "max_steps": 2}
    precision_of_environment(before)
    quiet_run(tmp_path, **fields)
    precision_of_environment(after)
    fields["max_steps"] = 4
    refused = f"got '{after or 'fp32'}', but the run in .* was started with '{before or 'fp32'}'"
    with pytest.raises(ConfigError, match=f"^precision: {refused}"):
        quiet_run(tmp_path, **fields, resume=True)
    results = quiet_run(tmp_path, **fields, resume=True, precision=before or "fp32")
    assert results["steps"] == 4
    assert results["environment"]["precision"] == (before or "fp32")


def test_a_comparison_goes_on_in_its_own_precision_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["compare", "--methods", "kd", "--epochs", "1", "--out", str(tmp_path), "--seeds"]
    assert main([*command, "1"]) == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    assert main([*command, "2", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "precision: got 'bf16', but the run in" in error
    assert error.count("\n") == 1


@pytest.fixture
def nothing_found() -> Iterator[None]:
    """Accelerate keeps to what it found of the environment first, but for this test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed of Accelerate, by ACCELERATE_USE_DEEP"),
        ({"ACCELERATE_USE_FSDP": "true"}, "got FSDP of Accelerate, by ACCELERATE_USE_FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "got Megatron-LM of Accelerate"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "got SageMaker of Accelerate"),
        (
            # Of one process: Accelerate would take it, and train by nothing but DDP.
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "True"},
            "got a ParallelismConfig of Accelerate",
        ),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "got a ParallelismConfig of Accelerate, by .*; expected DDP$",
        ),
        (
            {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "meta"},
            "Accelerate cannot start: ",
        ),
    ],
    ids=str,
)
def test_what_else_the_environment_asks_for_is_refused(
    environment: dict[str, str],
    sentence: str,
    nothing_found: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--method", "ce", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"ndfast train: processes: .*{sentence}.*\n", error.splitlines(True)[-1])
    assert not (tmp_path / "run").exists()


def test_all_processes_wait_for_the_log_before_they_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def seen(owner: type | ModuleType, name: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any, **named: Any) -> Any:
            happened.append(arguments[1] if name == "write" else name)
            return inner(*arguments, **named)

        monkeypatch.setattr(owner, name, outer)

    seen(RunLog, "write")
    seen(Accelerator, "wait_for_everyone")
    seen(train_run, "read_log")
    quiet_run(tmp_path, method="ce", max_steps=1)
    assert happened[happened.index("end") :][:3] == ["end", "wait_for_everyone", "read_log"]


def test_what_trainings_leave_goes_before_the_processes_group() -> None:
    class Left:
        """In a circle, as a module of DistributedDataParallel's is."""

        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    left = weakref.ref(Left())
    at_the_end: list[object] = []
    accelerator = SimpleNamespace(
        wait_for_everyone=lambda: at_the_end.append("together"),
        end_training=lambda: at_the_end.append(left()),
    )
    try:
        shut_down(accelerator)
    finally:
        gc.enable()
    assert at_the_end == ["together", None]


WHERE_A_MAP_LIES = """
import ctypes, sys, torch
from ndfast.train.machine.processes import build_accelerator
from ndfast.train.config.train_config import TrainConfig
if "keep" in sys.argv:
    build_accelerator(TrainConfig())
NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo
before = mallinfo()
tensor = torch.ones(2**24)
held = mallinfo()
del tensor
after = mallinfo()
print(held.hblkhd - before.hblkhd >= 2**26, held.uordblks - before.uordblks >= 2**26,
      after.arena + after.hblkhd >= held.arena + held.hblkhd)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="is about glibc's malloc, from 2.33 on"
)
@pytest.mark.parametrize(
    ("how", "mapped_of_heap_kept"), [("keep", "False True True"), ("as it is", "True False False")]
)
def test_a_training_on_the_cpu_keeps_its_pages(how: str, mapped_of_heap_kept: str) -> None:
    """64 MiB come from the heap, which keeps them; else a map of the kernel, given back at once."""
    found = subprocess.run(
        [sys.executable, "-c", WHERE_A_MAP_LIES, how],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.strip() == mapped_of_heap_kept
