"""How the parts of `make gpu` ended, as lines of JSON: a line is there as soon as it is known."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PASSED, FAILED, OUT_OF_TIME, STOPPED = "passed", "failed", "out of time", "stopped"
# CUT_SHORT: it began, and no end is known, for `make gpu` itself was killed.
CUT_SHORT, NOT_BEGUN = "cut short", "not begun"
MOST_LINES = 12
# What a failure begins with, the surest sign first: pytest's own, a compiler's or Python's.
SIGNS = (
    r"^E  ",
    r"^(FAILED|ERROR) ",
    r"\b(fatal|error)\b:|^\w*(Error|Exception)\b|exit status [1-9]",
)
CLOSING = re.compile(r"^=+ (.* in \d[\d.:]*s.*?) =+$", flags=re.MULTILINE)  # pytest's last line


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        part: its name.
        ended: one of the words above.
        seconds: that it took.
        said: what it said of itself at its end, one line.
        failure: the first lines of the first failure, or its last ones where none is found; empty
            where it passed.
    """

    part: str
    ended: str
    seconds: float | None = None
    said: str = ""
    failure: tuple[str, ...] = ()


def of_text(part: str, ended: str, seconds: float, text: str) -> Outcome:
    """The outcome of a part that printed ``text``."""
    # make repeats what is known.
    lines = [line.rstrip() for line in text.splitlines() if not re.match(r"make\b.*\*\*\*", line)]
    lines = [line for line in lines if line]
    said = "; ".join(CLOSING.findall(text)) or "".join(lines[-1:])
    return Outcome(part, ended, seconds, said, () if ended == PASSED else _failure(lines))


def _failure(lines: list[str]) -> tuple[str, ...]:
    for sign in SIGNS:
        for number, line in enumerate(lines):
            if re.search(sign, line):
                return tuple(lines[number : number + MOST_LINES])
    return tuple(lines[-MOST_LINES:])


def begin(logs: Path, gpu: str, anew: bool) -> None:
    """Makes the folder, and forgets what is in the file where the parts begin ``anew``."""
    logs.mkdir(parents=True, exist_ok=True)
    if anew:
        _file(logs).unlink(missing_ok=True)
    _append(logs, {"gpu": gpu})


def keep(logs: Path, outcome: Outcome) -> None:
    """Adds a line; a part's later one takes the place of its earlier ones."""
    _append(logs, asdict(outcome))


def load(logs: Path) -> tuple[str, dict[str, Outcome]]:
    """The GPU's name and, by part, the last that is known; a line without its end is left out.

    Raises:
        ValueError: there is no such file; the message names it.
    """
    try:
        lines = _file(logs).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{_file(logs)}: cannot be read: {error}") from None
    gpu, found = "", {}
    for line in lines:
        try:
            content = json.loads(line)
        except json.JSONDecodeError:  # killed in the middle of it
            continue
        if "gpu" in content:
            gpu = content["gpu"]
        else:
            found[content["part"]] = Outcome(**content | {"failure": tuple(content["failure"])})
    return gpu, found


def _append(logs: Path, content: dict[str, Any]) -> None:
    with _file(logs).open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _file(logs: Path) -> Path:
    return logs / "outcomes.jsonl"
