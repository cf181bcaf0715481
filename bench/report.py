"""What the times become: a record of the JSON, a row of the table."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

from bench.cases import KINDS, Case, dtype_name
from bench.cells import dtypes, figure, inverse, median_us_of, way
from bench.steps import COMPILE_MODES, ROOFLINES
from bench.timing import EagerTimes

if TYPE_CHECKING:
    from rich.table import Table

# In the table, where "compile" is the best of torch.compile's modes.
PEERS = ("compile", "eager", "loop", "accumulate")
YARDSTICKS = ("roofline", "cross_entropy")
CAPTION = (
    "Median times; spread is the interquartile range over the median; GB/s counts the bytes that "
    "have to move. Way fused: gradient in the forward's pass; deferred: after it; attached: added "
    "to the classifier's by the backward; forward: no_grad. roofline: torch.add(out=), for forward "
    "the sum over s and t, for a teacher's norms copy_, for attached that sum and the add; "
    "compile: the fastest mode, max-autotune only in four cases without --full, in none with "
    "--telling; "
    "accumulate: nd_loss, and autograd's own add; forward/add: what comes before "
    "backward, in the fused way with the gradient. Ratios are medians over rounds in which all "
    "take turns."
)


@dataclass(frozen=True)
class Times:
    """What was measured for a record; seconds of one call, an entry a round.

    Attributes:
        ours: of ndfast.
        others: of the peers, yardsticks and rooflines that took part, by name; "forward" is
            ndfast's own, without its backward.
        eager: outside of CUDA graphs, of "ndfast" and others; empty on the CPU.
        why_not: for a peer that took no part the reason.
    """

    ours: list[float]
    others: dict[str, list[float]]
    eager: dict[str, EagerTimes] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)


def record(case: Case, backend: str, seed: int, calls: int, times: Times) -> dict[str, Any]:
    """A row's figures, for the JSON's ``extra_info``.

    Args:
        case: what was timed.
        backend: of ndfast.
        seed: of the inputs.
        calls: calls in one of pytest-benchmark's own iterations, whose times are in ``stats``.
        times: the measurements.

    Returns:
        Times in microseconds: ``median_us`` on a GPU in CUDA graphs, ``eager_us`` by events without
        them, ``host_us`` what the host takes to issue a call (both None on the CPU). ``spread`` is
        a fraction of the median, ``GB/s`` in 10⁹ bytes a second. Each ``ratio_to_…`` is ndfast's
        time over the other's, None where it took no part; ``compile_mode`` names the fastest mode.
        ``others`` holds the same figures by step, with ``why_not`` for one that took no part;
        ``kernels`` are ndfast's forward and backward beside torch.add(s, t, out=g), None where
        there is no backward.
    """
    first, _, third = quantiles(times.ours, n=4)
    modes = [mode for mode in COMPILE_MODES if mode in times.others]
    best = min(modes, key=lambda mode: median(times.others[mode]), default=None)
    stands_for = {"roofline": KINDS[case.kind].roofline, "compile": best or "compile"}
    median_us = _us(times.ours)
    return {
        "case": str(case),
        "device": case.device,
        **environment(case.device),
        "N": case.N,
        "D": case.D,
        "K": case.K,
        "dtype": dtype_name(case.dtype),
        "means_dtype": dtype_name(case.means_dtype),
        "kind": case.kind,
        "way": case.way,
        "backend": backend,
        "seed": seed,
        "rounds": len(times.ours),
        "calls": calls,
        "median_us": median_us,
        "spread": (third - first) / median(times.ours),
        **_eager_us(times.eager.get("ndfast")),
        "bytes": case.num_bytes,
        "GB/s": 1e-3 * case.num_bytes / median_us,
        **{
            f"ratio_to_{name}": _ratio(times.ours, times.others.get(stands_for.get(name, name)))
            for name in (*YARDSTICKS, *PEERS)
        },
        "roofline": stands_for["roofline"],
        "compile_mode": best,
        "kernels": _kernels(times),
        "others": _others(case, times),
    }


def _us(seconds: Sequence[float]) -> float:
    return 1e6 * median(seconds)


def _eager_us(times: EagerTimes | None) -> dict[str, float | None]:
    if times is None:
        return {"eager_us": None, "host_us": None}
    return {"eager_us": _us(times.gpu_seconds), "host_us": _us(times.host_seconds)}


def _others(case: Case, times: Times) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, seconds in times.others.items():
        median_us = _us(seconds)
        found[name] = {"median_us": median_us, "ratio": _ratio(times.ours, seconds)}
        found[name] |= _eager_us(times.eager.get(name))
        if name in ROOFLINES:
            num_bytes = ROOFLINES[name].num_bytes(case)
            found[name] |= {"bytes": num_bytes, "GB/s": 1e-3 * num_bytes / median_us}
    return found | {name: {"why_not": reason} for name, reason in times.why_not.items()}


def _kernels(times: Times) -> dict[str, dict[str, float | None]] | None:
    """The forward and the backward beside the add's time; over_add_us is the difference."""
    if "forward" not in times.others:
        return None
    forward, add = times.others["forward"], times.others["add"]
    backward = [both - one for both, one in zip(times.ours, forward, strict=True)]
    return {
        name: {
            "median_us": _us(seconds),
            "over_add_us": _us([a - b for a, b in zip(seconds, add, strict=True)]),
            "ratio_to_add": _ratio(seconds, add),
        }
        for name, seconds in (("forward", forward), ("backward", backward))
    }


def _ratio(ours: Sequence[float], other: Sequence[float] | None) -> float | None:
    """The median of each round's ratio: a slow minute slows both sides of it."""
    return None if other is None else median(a / b for a, b in zip(ours, other, strict=True))


@cache
def environment(device: str) -> dict[str, Any]:
    """What a record says of the machine: its GPU and driver, None on the CPU, and versions."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    found = {"threads": torch.get_num_threads(), "torch": torch.__version__, "triton": triton}
    if device == "cpu":
        return {"gpu": None, "driver": None, **found}
    return {"gpu": torch.cuda.get_device_name(), "driver": _driver(), **found}


def _driver() -> str | None:
    """The GPU driver's version, None where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def table(records: list[dict[str, Any]]) -> Table:
    """A row each: how much slower the peers are, and how much slower than a yardstick ndfast is."""
    from rich.table import Table

    rows = Table(
        title="ND loss, µs a call",
        caption=CAPTION,
        caption_justify="left",
        box=None,
        collapse_padding=True,
    )
    for name in ("device", "N×D", "dtype", "way", "backend"):
        rows.add_column(name, no_wrap=True)
    peers = [name for name in PEERS if any(r[f"ratio_to_{name}"] for r in records)]
    headers = ["ndfast", "spread", "GB/s", *YARDSTICKS, *peers]
    headers += [f"ndfast/\n{name}" for name in YARDSTICKS] + ["forward/\nadd"]
    headers += [f"{name}/\nndfast" for name in peers]
    for header in headers:
        rows.add_column(header.replace("_", "\n"), justify="right", no_wrap=True)
    for r in records:
        ratios = {name: r[f"ratio_to_{name}"] for name in (*YARDSTICKS, *PEERS)}
        rows.add_row(
            r["gpu"] or "cpu", f"{r['N']}×{r['D']}", dtypes(r), way(r), r["backend"],
            figure(r["median_us"]), f"{r['spread']:.0%}", figure(r["GB/s"]),
            *(figure(median_us_of(r, name)) for name in (*YARDSTICKS, *peers)),
            *(figure(ratios[name]) for name in YARDSTICKS),
            figure(r["kernels"] and r["kernels"]["forward"]["ratio_to_add"]),
            *(figure(inverse(ratios[name])) for name in peers),
        )  # fmt: skip
    return rows
