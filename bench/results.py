"""The results file: a GPU's records as JSON, written by `pytest bench/`, read by bench.publish."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

# What the table and the picture are made of.
KEYS = {
    "case", "gpu", "torch", "triton", "driver", "N", "D", "K", "dtype", "means_dtype", "kind",
    "way", "backend", "median_us", "spread", "bytes", "GB/s", "eager_us", "host_us",
    "ratio_to_roofline", "ratio_to_compile", "ratio_to_eager", "ratio_to_loop",
    "ratio_to_accumulate", "compile_mode", "kernels", "others",
}  # fmt: skip


# With the same of these, records of two runs may stand in one table.
VERSIONS = ("gpu", "torch", "triton", "driver")


def path_of(folder: Path, gpu: str) -> Path:
    """The file of a GPU by its name: "NVIDIA H200" has nvidia-h200.json."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def save(path: Path, command: str, records: list[dict[str, Any]]) -> None:
    """Replaces the file, whole: one that is there already is lost only to a complete one.

    Args:
        path: of the file; its folder is made.
        command: what gave the records.
        records: as `bench.report.record` gives them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".json.part")
    text = json.dumps({"command": command, "records": records}, indent=1, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def added_to(
    earlier: tuple[str, list[dict[str, Any]]], command: str, records: list[dict[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Command and records of two runs, of which the later one replaces what both have timed.

    Args:
        earlier: as `load` returns it. Records of another GPU, or with other versions, are left out.
        command: what gave the later records.
        records: the later ones, at least one.
    """
    timed = {(r["case"], r["backend"]) for r in records}
    kept = [
        r
        for r in earlier[1]
        if (r["case"], r["backend"]) not in timed
        and all(r[name] == records[0][name] for name in VERSIONS)
    ]
    return (f"{earlier[0]}; {command}" if kept else command), kept + records


def load(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Returns the command and the records.

    Raises:
        ValueError: the file is not what `save` writes; the message names it and what it lacks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    records = content.get("records") if isinstance(content, dict) else None
    if not isinstance(records, list) or not records or not isinstance(content.get("command"), str):
        raise ValueError(f"{path}: expected an object of a command and a list of records")
    for number, found in enumerate(records):
        missing = KEYS - found.keys() if isinstance(found, dict) else KEYS
        if missing:
            raise ValueError(f"{path}: record {number} lacks {', '.join(sorted(missing))}")
    return content["command"], records
