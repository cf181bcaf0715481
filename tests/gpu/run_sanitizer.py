"""Runs sanitize.py under compute-sanitizer's four tools, side by side: `make gpu-sanitize`.

The exit status is 1 where a tool found something. Where there is no compute-sanitizer, or it cannot
work on this machine (some containers do not let it), a sentence says so and the status is 0. On
Ctrl-C the tools end, and what they have found so far is told.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

TOOLS = {
    # What the CUDA runtime returns as an error torch raises, or asked for and handles.
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": [],
    "initcheck": [],
    "synccheck": [],
}
# Races and barriers are looked for in ndfast's own kernels, by a part of their names: torch's would
# cost time, and what is found in them is not ndfast's. initcheck has to see who writes what ours
# read, and memcheck whoever writes past the end.
OWN_KERNELS = {"cuda": "ndfast", "triton": "ward_kernel"}
OF_OWN_KERNELS = ("racecheck", "synccheck")
FOUND = 99  # the exit status of a tool that found something
OUT_OF_TIME = -1  # or stopped
SECONDS = 240
LOOK = 0.1  # seconds, how often Ctrl-C is looked for
RUNNING: set[int] = set()  # process groups
STOPPED = threading.Event()
TRIVIAL = [sys.executable, "-c", "import torch; print(torch.ones(1, device='cuda') + 1)"]


def sanitizer() -> str | None:
    """The program's path: on PATH, or where the CUDA toolkit keeps it."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = os.pathsep.join((os.environ.get("PATH", ""), f"{toolkit}/bin"))
    return shutil.which("compute-sanitizer", path=places)


def run(program: str, tool: str, command: list[str], kernels: str | None = None) -> tuple[int, str]:
    """The exit status, or OUT_OF_TIME, and what was printed; ``kernels``: a part of their names."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "5", *TOOLS[tool]]
    if kernels is not None and tool in OF_OWN_KERNELS:
        options += ["--kernel-name", f"kernel_substring={kernels}"]
    # Without its cache torch allocates each tensor by itself, and a read past its end is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with subprocess.Popen(
        [program, *options, *command], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        RUNNING.add(process.pid)
        if STOPPED.is_set():  # while it began
            stop()
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            # With the program under it, which would go on and hold the pipe open.
            os.killpg(process.pid, signal.SIGKILL)
            return OUT_OF_TIME, f"not done after {SECONDS} s"
        finally:
            RUNNING.discard(process.pid)
    if STOPPED.is_set():
        return OUT_OF_TIME, f"{said}stopped"
    return process.returncode, said


def stop(*_: object) -> None:
    """The handler of Ctrl-C: ends the tools, which are not in the terminal's process group."""
    STOPPED.set()
    for group in [*RUNNING]:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda", help="of ndfast (default: %(default)s)")
    options = parser.parse_args()
    program = sanitizer()
    if program is None:
        print("compute-sanitizer is not installed: nothing was looked at")
        return 0
    calls = [sys.executable, str(Path(__file__).with_name("sanitize.py"))]
    calls += ["--backend", options.backend]
    kernels = OWN_KERNELS.get(options.backend)
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        results = {tool: pool.submit(run, program, tool, calls, kernels) for tool in TOOLS}
        # In short waits: the system may give Ctrl-C to any thread, its handler runs in this one,
        # and a long wait for a lock would not end for it.
        while wait(results.values(), timeout=LOOK).not_done:
            pass
        found = {tool: result.result() for tool, result in results.items()}
    # A tool that ran out of time did work, and another look would take as long again.
    if any(status not in (0, OUT_OF_TIME) for status, _ in found.values()):
        status, said = run(program, "memcheck", TRIVIAL)
        if status not in (0, FOUND, OUT_OF_TIME):
            why = " ".join(said.strip().splitlines()[-1:])
            print(f"compute-sanitizer cannot work on this machine: nothing was looked at ({why})")
            return 0
    for tool, (status, said) in found.items():
        lines = said.strip().splitlines()
        print(f"{tool}: {'clean' if status == 0 else f'exit status {status}'}")
        print("\n".join(lines[-2:] if status == 0 else lines))
    return int(any(status != 0 for status, _ in found.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    sys.exit(main())
