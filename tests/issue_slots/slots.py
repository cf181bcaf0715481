"""From the instructions of a row to the part of a GPU's issue slots that it needs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from issue_slots.warp import Launch, Warp

FEATURES = (64, 128, 192, 256, 384, 512, 768, 1000, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BANDWIDTH_REACHED = 0.9
SCHEDULERS = 4  # of a multiprocessor, an instruction a cycle each

# Tensors of the student's size that each kernel reads and writes.
KINDS = {
    "fused forward": 3,
    "deferred forward": 2,
    "deferred backward": 2,
    "attached backward": 3,
}


class Gpu(NamedTuple):
    """Of the makers' data sheets; ``code``: which machine code it runs."""

    code: str
    bytes_per_second: float
    multiprocessors: int
    hertz: float


GPUS = {
    "A100": Gpu("sm_80", 2.039e12, 108, 1.41e9),  # 80 GB, SXM
    "H100": Gpu("sm_90", 3.35e12, 132, 1.755e9),  # SXM
    "H200": Gpu("sm_90", 4.8e12, 132, 1.755e9),
}


class Launches(Protocol):
    def record(self, gpu: str, kind: str, D: int, dtype: torch.dtype, rounds: int) -> Launch: ...


def instructions_of_row(
    launches: Launches, gpu: str, kind: str, D: int, dtype: torch.dtype
) -> float:
    """What the warps of a block issue in one further round, over the rows that it takes."""

    def issued(rounds: int) -> tuple[int, int]:
        launch = launches.record(gpu, kind, D, dtype, rounds)
        # The first warp ends what the others do not; these are all alike.
        first, *others = (Warp(launch, number).run() for number in range(min(launch.num_warps, 2)))
        return first + sum(others) * (launch.num_warps - 1), launch.rows

    (two, rows), (three, _) = issued(2), issued(3)
    return (three - two) / rows


def percent(launches: Launches, kind: str, D: int, dtype: torch.dtype) -> dict[str, float]:
    """Of the issue slots in the time that a row's bytes take, by GPU."""
    codes = {gpu.code for gpu in GPUS.values()}
    issued = {code: instructions_of_row(launches, code, kind, D, dtype) for code in codes}
    found = {}
    for name, gpu in GPUS.items():
        seconds = KINDS[kind] * D * dtype.itemsize / (BANDWIDTH_REACHED * gpu.bytes_per_second)
        slots = seconds * gpu.multiprocessors * SCHEDULERS * gpu.hertz
        found[name] = 100 * issued[gpu.code] / slots
    return found
