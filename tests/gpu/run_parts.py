"""`make gpu`: its parts in turn, each with a time limit; at its end one screen tells what was seen.

In the folder of logs <part>.log has what a part prints, while it prints it, and outcomes.jsonl how
it ended, as soon as it has: whatever is cut short, what was seen is kept. A part that fails, or is
out of time, does not stop the next. Ctrl-C and SIGTERM end the part and all that follow.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # pytest has put it in the path
    sys.path.insert(0, str(Path(__file__).parents[2]))

import outcomes
import screen
from outcomes import Outcome

ROOT = Path(__file__).parents[2]
MAKE = ("make", "--no-print-directory")
LOOK = 0.1  # seconds, how often a part's output is copied to the screen
# Seconds that a part has to end by itself: pytest tells then what had failed until there.
GRACE = 10.0


@dataclass(frozen=True)
class Part:
    """What `make gpu` does in one go.

    Attributes:
        name: by which it is chosen, and its log is named.
        command: a program and its arguments.
        seconds: after which it is ended.
    """

    name: str
    command: Sequence[str]
    seconds: float


def _make(name: str, seconds: float, target: str, arguments: str = "") -> Part:
    # ARGS of `make gpu` itself are not a part's.
    return Part(name, (*MAKE, target, f"ARGS={arguments}"), seconds)


# What tells the most in the least time comes first: a machine may be there for minutes only.
PARTS = (
    _make("build", 150, "gpu-build"),
    _make("smoke", 90, "gpu-smoke"),
    _make("telling", 240, "gpu-bench", "--telling"),
    _make("test", 300, "gpu-test"),
    _make("sanitize", 300, "gpu-sanitize"),
    _make("rest", 600, "gpu-bench", "--add --missing"),
    _make("report", 60, "gpu-report"),
)


class Stop:
    """Whether a signal has asked for the end: it is the handler."""

    asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True


def run_all(parts: Sequence[Part], logs: Path, stop: Stop, seconds: float = math.inf) -> bool:
    """Whether all have passed; ``seconds``, for all of them together, cut the last ones short."""
    until = time.monotonic() + seconds
    found = []
    for part in parts:
        left = min(part.seconds, until - time.monotonic() - GRACE)
        if stop.asked or left <= 0:
            found.append(Outcome(part.name, outcomes.NOT_BEGUN))
        else:
            outcomes.keep(logs, Outcome(part.name, outcomes.CUT_SHORT))  # so far
            found.append(run(part, left, logs, stop))
        outcomes.keep(logs, found[-1])
    return all(outcome.ended == outcomes.PASSED for outcome in found)


def run(part: Part, seconds: float, logs: Path, stop: Stop) -> Outcome:
    """Runs a part for at most so many seconds, its output on the screen and in its log."""
    _show(f"== {part.name}, at most {seconds:.0f} s\n".encode())
    begun = time.monotonic()
    limit, cut = begun + seconds, ""
    log = logs / f"{part.name}.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as kept, log.open("rb") as said:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=kept,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
            _show(said.read())
            now = time.monotonic()
            if cut and now >= limit:
                _signal_all_of(process, signal.SIGKILL)
            elif not cut and (stop.asked or now >= limit):
                cut = outcomes.STOPPED if stop.asked else outcomes.OUT_OF_TIME
                limit = now + GRACE
                _signal_all_of(process, signal.SIGINT)
        _signal_all_of(process, signal.SIGKILL)  # nothing that it left behind disturbs the next
        _show(said.read())
    ended = cut or (outcomes.FAILED if process.returncode else outcomes.PASSED)
    text = log.read_text(encoding="utf-8", errors="replace")
    return outcomes.of_text(part.name, ended, time.monotonic() - begun, text)


def _signal_all_of(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _show(output: bytes) -> None:
    with suppress(OSError):  # the terminal may be gone; the log is there
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()


def name_of_gpu() -> str:
    """By PyTorch's, of the Python that the parts run by; ends the program where there is none."""
    command = (*MAKE, "gpu-name", "ARGS=")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    said = [line for line in done.stderr.strip().splitlines() if not line.startswith("make")]
    sys.exit(f"make gpu needs PyTorch and a CUDA GPU; here it got: {' '.join(said[-1:])}")


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """The command; its exit status is 0 where all parts have passed."""
    names = [part.name for part in parts]
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "gpu", metavar="FOLDER")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "bench" / "results", metavar="FOLDER",
        help="where the benchmark keeps its figures",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="for all parts together (default: no limit)"
    )
    parser.add_argument(
        "--show", action="store_true", help="run nothing, print the screen of what was kept"
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART",
        help=f"of {', '.join(names)}; by default all, and what was kept before is forgotten",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    for name in options.parts:
        if name not in names:
            parser.error(f"PART: got {name!r}, expected one of {', '.join(names)}")
    if not options.seconds > GRACE:
        parser.error(f"--seconds: got {options.seconds:g}, expected more than {GRACE:g}")
    if options.show:
        return screen.show(options.logs, options.results, names)
    gpu = name_of_gpu()
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, stop)
    outcomes.begin(options.logs, gpu, anew=not options.parts)
    chosen = [part for part in parts if part.name in (options.parts or names)]
    all_passed = run_all(chosen, options.logs, stop, options.seconds)
    screen.show(options.logs, options.results, names)
    return int(not all_passed)


if __name__ == "__main__":
    sys.exit(main())
