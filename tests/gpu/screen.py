"""The screen that ends `make gpu`: what passed, what failed first, and the benchmark's table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import outcomes
from outcomes import Outcome

from bench import results
from bench.cells import dtypes, figure, median_us_of, way

WIDTH, MOST_CASES = 120, 16
BACKENDS = ("cuda", "triton")
STEPS = ("add", "compile", "eager")
HEADERS = (
    (*[""] * 8, "cuda /", "host:", "host:"),
    ("N×D", "dtype", "way", *BACKENDS, *STEPS, "roofline", "cuda", "compile"),
)
NUM_WORDS = 3  # columns of words, which begin on the left


def show(logs: Path, folder: Path, names: Sequence[str]) -> int:
    """Prints it from what the parts have kept; 0, or 1 where nothing was kept.

    Args:
        logs: of the parts.
        folder: of the benchmark's results.
        names: of all parts, in their order.
    """
    try:
        gpu, found = outcomes.load(logs)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    known = [found.get(name, Outcome(name, outcomes.NOT_BEGUN)) for name in names]
    parts = [
        [o.part, o.ended, "" if o.seconds is None else f"{o.seconds:.0f} s", o.said] for o in known
    ]
    text = [f"\nmake gpu on {gpu}; {logs}\n", *aligned(parts, num_words=4), ""]
    first = next((o for o in known if o.ended not in (outcomes.PASSED, outcomes.NOT_BEGUN)), None)
    if first is not None:
        text += [f"First that did not pass: {first.part}, {first.ended}", *first.failure, ""]
    text += benchmark(results.path_of(folder, gpu))
    print("\n".join(line[:WIDTH] for line in text))
    return 0


def benchmark(path: Path) -> list[str]:
    """The table of a results file, a line a case, medians in µs."""
    try:
        records = results.load(path)[1]
    except ValueError:
        return [f"{path}: no figures"]
    of_case: dict[str, dict[str, dict[str, Any]]] = {}
    for r in records:
        of_case.setdefault(r["case"], {})[r["backend"]] = r
    rows = [_row(by_backend) for by_backend in list(of_case.values())[:MOST_CASES]]
    table = aligned([*HEADERS, *rows], NUM_WORDS)
    if (left := len(of_case) - MOST_CASES) > 0:
        table.append(f"and {left} more")
    return [f"{path}; medians in µs", *table]


def _row(by_backend: dict[str, dict[str, Any]]) -> list[str]:
    r = by_backend.get("cuda") or next(iter(by_backend.values()))
    compiled = r["others"].get("compile", {}).get("host_us")
    times = [by_backend[name]["median_us"] if name in by_backend else None for name in BACKENDS]
    times += [median_us_of(r, name) for name in STEPS]
    ours = (r["ratio_to_roofline"], r["host_us"]) if "cuda" in by_backend else (None, None)
    cells = map(figure, (*times, *ours, compiled))
    return [f"{r['N']}×{r['D']}", dtypes(r), way(r), *cells]


def aligned(rows: Sequence[Sequence[str]], num_words: int) -> list[str]:
    """Lines of equal columns, the first ``num_words`` of which begin on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < num_words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
