"""Makes the GPU table of docs/performance.md and the roofline picture from the results files.

`python -m bench.publish [FILE ...]`, by default every bench/results/*.json. The table replaces what
stands between the page's two marker comments; without a results file it says "not measured".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.cases import grid
from bench.cells import dtypes, figure, inverse, way
from ndfast.files import expand_home

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- gpu results -->", "<!-- end of gpu results -->"
NOT_MEASURED = "not measured"

Record = dict[str, Any]
Column = tuple[str, Callable[[Record], str]]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a bad file or page is one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=expand_home, metavar="FILE", help="of pytest --results"
    )
    parser.add_argument("--page", type=expand_home, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--picture", type=expand_home, default=ROOT / "docs" / "roofline.png")
    options = parser.parse_args(arguments)
    files = options.files or sorted((ROOT / "bench" / "results").glob("*.json"))
    try:
        measured = [results.load(file) for file in files]
        text = options.page.read_text(encoding="utf-8")
        text = between_markers(text, markdown(measured))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.page.write_text(text, encoding="utf-8")
    print(f"{options.page}: {len(measured) or 'no'} GPU's results")
    if not measured:
        return
    try:
        from bench.picture import draw
    except ImportError as error:
        print(f"{options.picture}: not drawn, it needs matplotlib ({error})", file=sys.stderr)
        return
    draw([records for _, records in measured], options.picture)
    print(f"{options.picture}: drawn")


def between_markers(text: str, body: str) -> str:
    """``text`` with ``body`` between its markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise ValueError(f"the page must have {START} and, after it, {END}, once each")
    return f"{before}{START}\n{body}\n{END}{after}"


def markdown(measured: list[tuple[str, list[Record]]]) -> str:
    """The page's part: two tables for each (command, records)."""
    if not measured:
        return NOT_MEASURED
    return "\n\n".join(_of_gpu(command, records) for command, records in measured)


def _of_gpu(command: str, records: list[Record]) -> str:
    r, chosen = records[0], choose(records)
    versions = f"torch {r['torch']}, Triton {r['triton']}, driver {r['driver']}"
    parts = [
        f"{r['gpu']}; {versions}; `{command}`",
        _what_is_missing(chosen),
        _table(STEP_COLUMNS, chosen),
    ]
    if with_kernels := [r for r in chosen if r["kernels"]]:
        parts += [
            "The forward and the backward of the same calls, each beside `torch.add(s, t, out=g)`:",
            _table(KERNEL_COLUMNS, with_kernels),
        ]
    return "\n\n".join(parts)


def _what_is_missing(chosen: list[Record]) -> str:
    """How many cases of the full grid these are, and of torch.compile's modes."""
    cases = {r["case"] for r in chosen}
    autotuned = {r["case"] for r in chosen if "median_us" in r["others"].get("autotune", {})}
    whole = len(grid("cuda", "full"))
    return (
        f"{len(cases)} of the grid's {whole:,} cases (`--full` times all). `compile` is "
        f"torch.compile's fastest mode; max-autotune took part in {len(autotuned)} cases."
    )


def choose(records: list[Record]) -> list[Record]:
    """Those of the quick grid, in its order: the full one's table would fill a book."""
    places = {str(case): place for place, case in enumerate(grid("cuda", "quick"))}
    return sorted((r for r in records if r["case"] in places), key=lambda r: places[r["case"]])


def _host_ratio(r: Record) -> float | None:
    compiled = r["others"].get("compile", {}).get("host_us")
    return compiled and r["host_us"] and compiled / r["host_us"]


# Header and cell.
_CASE: list[Column] = [
    ("N×D", lambda r: f"{r['N']}×{r['D']}"),
    ("dtype", dtypes),
    ("way", way),
    ("backend", lambda r: r["backend"]),
]
STEP_COLUMNS = [
    *_CASE,
    ("µs", lambda r: figure(r["median_us"])),
    ("GB/s", lambda r: figure(r["GB/s"])),
    ("ndfast / roofline", lambda r: figure(r["ratio_to_roofline"])),
    ("compile / ndfast", lambda r: figure(inverse(r["ratio_to_compile"]))),
    ("eager / ndfast", lambda r: figure(inverse(r["ratio_to_eager"]))),
    ("loop / ndfast", lambda r: figure(inverse(r["ratio_to_loop"]))),
    ("accumulate / ndfast", lambda r: figure(inverse(r["ratio_to_accumulate"]))),
    ("eager mode, µs", lambda r: figure(r["eager_us"])),
    ("host, µs", lambda r: figure(r["host_us"])),
    ("compile / ndfast, host", lambda r: figure(_host_ratio(r))),
]


def _of_kernel(kernel: str) -> list[Column]:
    return [
        (f"{kernel}, µs", lambda r: figure(r["kernels"][kernel]["median_us"])),
        ("− add, µs", lambda r: figure(r["kernels"][kernel]["over_add_us"])),
        ("/ add", lambda r: figure(r["kernels"][kernel]["ratio_to_add"])),
    ]


KERNEL_COLUMNS = [*_CASE, *_of_kernel("forward"), *_of_kernel("backward")]


def _table(columns: list[Column], records: list[Record]) -> str:
    rows = [[header for header, _ in columns], ["---"] * len(columns)]
    rows += [[cell(r) for _, cell in columns] for r in records]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
