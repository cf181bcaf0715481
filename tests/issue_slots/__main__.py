"""Counts what the loss's kernels issue for a row, and what part of a GPU's issue slots that is.

    make issue-slots [ARGS="--write docs/performance.md"]

Computed, not measured. A row's bytes take a time, at 90 % of what the GPU's memory moves; in that
time its schedulers issue a certain number of instructions, one per cycle and scheduler. The table
says how many percent of these the kernel needs. Beyond about 65 % memory waits for instructions.

- A warp is followed through the machine code (warp.py) from the parameters of a real call
  (launches.py, triton_launches.py); an instruction that a predicate switches off is issued too.
- What counts is one further round of a block: three rounds less two. What begins and ends a block
  is left out, for it is shared by all of its rows.
- One instruction is one slot, whatever its unit: double precision, square roots and shuffles have
  fewer units, so this is the least that is needed.
- Code for sm_80 counts for the A100, for sm_90 for H100 and H200.
- All of s, t and the gradients come from memory and go there, class means come from the cache.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from emulated_cuda import compile_and_load
from issue_slots.launches import CudaLaunches
from issue_slots.slots import DTYPES, FEATURES, GPUS, KINDS, Launches, percent
from machine_code import read

BEGIN, END = "<!-- issue slots: begin -->", "<!-- issue slots: end -->"


def table(launches: Launches) -> str:
    """A row for each dtype and kernel, a column for each number of features."""
    names = " / ".join(GPUS)
    lines = [
        f"| {names} | " + " | ".join(map(str, FEATURES)) + " |",
        "|---" * (1 + len(FEATURES)) + "|",
    ]
    for dtype in DTYPES:
        for kind in KINDS:
            cells = []
            for D in FEATURES:
                found = percent(launches, kind, D, dtype)
                cells.append(" / ".join(f"{found[gpu]:.0f}" for gpu in GPUS))
            lines.append(f"| {str(dtype).removeprefix('torch.')}, {kind} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="between its two marks")
    page = parser.parse_args().write
    os.environ["TRITON_INTERPRET"] = "0"  # Triton decides at its import
    from issue_slots.triton_launches import TritonLaunches

    with tempfile.TemporaryDirectory() as folder:
        compile_and_load(Path(folder))
        kernels = read(Path(str(import_module("ndfast._C").__file__)))
        tables = {"CUDA": CudaLaunches(Path(folder), kernels), "Triton": TritonLaunches()}
        text = "\n\n".join(f"{name}:\n\n{table(one)}" for name, one in tables.items())
    if page is None:
        print(text)
        return
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        sys.exit(f"{page}: expected the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
