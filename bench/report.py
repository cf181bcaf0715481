"""What the times become: a record of the JSON, a row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import Any

import torch
from rich.table import Table

from bench.cases import Case

PEERS = ("compile", "eager", "loop")
YARDSTICKS = ("roofline", "cross_entropy")
CAPTION = (
    "Median times; spread is the interquartile range over the median; GB/s counts the bytes that "
    "have to move: student and teacher read, the student's gradient written. Way a: gradient in "
    "the forward's pass; b: after it (float16); forward: no_grad. roofline: torch.add(out=), "
    "for forward the sum over s and t. Ratios are medians over rounds in which all take turns."
)


def record(
    case: Case, backend: str, seed: int, calls: int, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """A row's figures, for the JSON's ``extra_info``.

    Args:
        case: what was timed.
        backend: of ndfast.
        seed: of the inputs.
        calls: calls in one of pytest-benchmark's own iterations, whose times are in ``stats``.
        seconds: by step ("ndfast", and the peers and yardsticks that took part), a call's seconds
            in each round.

    Returns:
        Times in microseconds, ``spread`` as a fraction of the median, ``GB/s`` in 10⁹ bytes a
        second; each ``ratio_to_…`` is ndfast's time over the other's, None where it took no part.
    """
    ours = seconds["ndfast"]
    median_us = {name: 1e6 * median(times) for name, times in seconds.items()}
    first, _, third = quantiles(ours, n=4)
    return {
        "device": torch.cuda.get_device_name() if case.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "N": case.N,
        "D": case.D,
        "K": case.K,
        "dtype": case.dtype_name,
        "way": case.way,
        "backend": backend,
        "seed": seed,
        "rounds": len(ours),
        "calls": calls,
        "median_us": median_us["ndfast"],
        "spread": (third - first) / median(ours),
        "bytes": case.num_bytes,
        "GB/s": 1e-3 * case.num_bytes / median_us["ndfast"],
        **{f"{name}_us": median_us.get(name) for name in (*YARDSTICKS, *PEERS)},
        **{f"ratio_to_{name}": _ratio(ours, seconds.get(name)) for name in (*YARDSTICKS, *PEERS)},
    }


def _triton_version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _ratio(ours: Sequence[float], other: Sequence[float] | None) -> float | None:
    """The median of each round's ratio: a slow minute slows both sides of it."""
    return None if other is None else median(a / b for a, b in zip(ours, other, strict=True))


def table(records: list[dict[str, Any]]) -> Table:
    """A row each: how much slower the peers are, and how much slower than a yardstick ndfast is."""
    rows = Table(
        title="ND loss, µs a call",
        caption=CAPTION,
        caption_justify="left",
        box=None,
        collapse_padding=True,
    )
    for name in ("device", "N×D", "dtype", "way", "backend"):
        rows.add_column(name, no_wrap=True)
    headers = ["ndfast", "spread", "GB/s", *YARDSTICKS, *PEERS]
    headers += [f"ndfast/\n{name}" for name in YARDSTICKS] + [f"{name}/\nndfast" for name in PEERS]
    for header in headers:
        rows.add_column(header.replace("_", "\n"), justify="right", no_wrap=True)
    for r in records:
        ratios = {name: r[f"ratio_to_{name}"] for name in (*YARDSTICKS, *PEERS)}
        rows.add_row(
            r["device"], f"{r['N']}×{r['D']}", r["dtype"], r["way"], r["backend"],
            _figure(r["median_us"]), f"{r['spread']:.0%}", _figure(r["GB/s"]),
            *(_figure(r[f"{name}_us"]) for name in (*YARDSTICKS, *PEERS)),
            *(_figure(ratios[name]) for name in YARDSTICKS),
            *(_figure(ratios[name] and 1 / ratios[name]) for name in PEERS),
        )  # fmt: skip
    return rows


def _figure(value: float | None) -> str:
    """Three digits at least, and no exponent."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
