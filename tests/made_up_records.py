"""Records of a benchmark that never was, of figures by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import report
from bench.cases import Case
from bench.report import Times, record
from bench.timing import EagerTimes

A_CASE = Case("cuda", 256, 512, torch.float32)


def made_up_times() -> Times:
    """Three rounds; ndfast's forward takes 2, 3 and 3 µs, its backward 1, 1 and 2."""
    others = {
        "forward": [2e-6, 3e-6, 3e-6],
        "add": [2e-6, 2e-6, 2e-6],
        "copy": [1e-6, 1e-6, 1e-6],
        "read": [1e-6, 1e-6, 1e-6],
        "compile": [9e-6, 9e-6, 9e-6],
        "autotune": [8e-6, 8e-6, 8e-6],
        "eager": [40e-6, 40e-6, 40e-6],
    }
    eager = {
        "ndfast": EagerTimes([50e-6, 60e-6, 70e-6], [30e-6, 40e-6, 50e-6]),
        "compile": EagerTimes([200e-6] * 3, [120e-6] * 3),
    }
    return Times([3e-6, 4e-6, 5e-6], others, eager, {"autotune_graphs": "RuntimeError: no memory"})


def made_up_record(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    environment = {"gpu": "Some GPU", "driver": "1.2", "threads": 2, "torch": "9", "triton": "8"}
    monkeypatch.setattr(report, "environment", lambda device: environment)
    return record(case, backend, 7, 20, made_up_times())
