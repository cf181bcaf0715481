"""Times builds of the compiled library against each other: what a change of a kernel is worth.

    python -m bench.builds old=old.so new=ndfast/_C.abi3.so [--device cpu] [--shape 4096x768 ...]

Each build has a process of its own. All have the same inputs, what they give is checked against the
definition in float64, and in every round they take turns. A build that fails is left out from then
on. On a GPU the cases are the telling ones, on the CPU the quick grid's; --shape and --dtype are
those of `pytest bench/`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.cells import figure

# A build's process loads the build before ndfast, and imports this file before that.
if TYPE_CHECKING:
    from bench.cases import Case
    from bench.timing import Timed

ROUNDS = 15
SECONDS = 120.0  # that an answer may take: a kernel may hang
SETTLING_SECONDS = 0.05
STEPS = ("forward and backward", "forward")


class Build:
    """A build, timed in a process of its own.

    Attributes:
        name: of the build.
    """

    def __init__(self, name: str, library: Path) -> None:
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(other, library), daemon=True)
        self._process.start()
        other.close()

    def prepare(self, case: Case, seed: int) -> None:
        """Checks and warms up.

        Raises:
            RuntimeError: the build does not load, fails or gives wrong results.
        """
        self._ask((case, seed))

    def round(self) -> dict[str, float]:
        """Seconds of a call, by the names of `STEPS` and "roofline"; raises as `prepare`."""
        return self._ask(None)

    def _ask(self, question: Any) -> Any:
        try:
            self._pipe.send(question)
            answer = self._pipe.recv() if self._pipe.poll(SECONDS) else f"silent for {SECONDS:g} s"
        except (EOFError, OSError):
            self._process.join()
            answer = f"its process ended, exit status {self._process.exitcode}"
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def serve(pipe: Connection, library: Path) -> None:
    """In a build's process: answers a case by {}, None by a round's times, or either by why not."""
    failed = outcome(lambda: load(library))
    timed: dict[str, Timed] = {}

    def answer(question: tuple[Case, int] | None) -> dict[str, float]:
        if question is not None:
            timed.clear()  # a CUDA graph holds its memory
            timed.update(prepared(*question))
            return {}
        settle([*timed.values()])
        for one in timed.values():
            one.round()
        return {name: one.seconds[-1] for name, one in timed.items()}

    with suppress(EOFError):  # the parent has ended
        while True:
            question = pipe.recv()  # whose case brings ndfast along, and that its library
            pipe.send(failed or outcome(partial(answer, question)))


def settle(steps: Sequence[Timed]) -> None:
    """Runs them untimed: another build has left its data in the caches, and threads that spin."""
    from bench.timing import clock  # which waits for a GPU: no work is left for the round

    end = clock() + SETTLING_SECONDS
    while clock() < end:
        for one in steps:
            one.run()


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns, or in one line what it raises."""
    try:
        return call()
    except Exception as error:  # the loader's, a GPU's, or a check's
        return f"{type(error).__name__}: {error}".splitlines()[0]


def load(library: Path) -> None:
    """Makes it `ndfast._C`, in the place of the one that is installed."""
    import torch  # noqa: F401  (it is linked against it)

    loader = ExtensionFileLoader("ndfast._C", str(library.resolve()))
    spec = spec_from_loader("ndfast._C", loader)
    assert spec is not None
    module = sys.modules["ndfast._C"] = module_from_spec(spec)
    loader.exec_module(module)
    from ndfast.train.machine.allocator import keep_freed_memory

    keep_freed_memory()


def prepared(case: Case, seed: int) -> dict[str, Timed]:
    from bench.cases import KINDS
    from bench.steps import ROOFLINES, Peer, forward_step, nd_loss_step
    from bench.test_nd_loss import check, without_peers
    from bench.timing import prepare

    backend = "cuda" if case.device == "cuda" else "native"
    step = nd_loss_step(case, backend)
    workload = without_peers(case, seed)
    check(f"ndfast on {backend}", step, workload)
    steps = dict(zip(STEPS, (step, forward_step(case, backend)), strict=True))
    steps["roofline"] = ROOFLINES[KINDS[case.kind].roofline].step
    timed = {name: prepare(Peer(step), workload.inputs) for name, step in steps.items()}
    for one in timed.values():
        one.calibrate()
    return timed


def compare(builds: list[Build], case: Case, seed: int) -> list[Build]:
    """Prints the case's lines, and returns the builds that have not failed."""
    print(f"{case}, seed {seed}", flush=True)
    rounds: dict[Build, list[dict[str, float]]] = {build: [] for build in builds}
    for number in range(ROUNDS + 1):
        for build in [*rounds]:
            try:
                if number == 0:
                    build.prepare(case, seed)
                else:
                    rounds[build].append(build.round())
            except RuntimeError as error:
                print(f"  {error}", flush=True)
                build.end()
                del rounds[build]
    for step in STEPS:
        for build, ours in rounds.items():
            first = next(iter(rounds))
            us = figure(1e6 * median(times[step] for times in ours))
            pairs = zip(ours, rounds[first], strict=True)
            over_first = figure(median(own[step] / other[step] for own, other in pairs))
            over_roofline = figure(median(times[step] / times["roofline"] for times in ours))
            print(
                f"  {build.name:12} {step:20} {us:>8} µs, {over_first:>5} times {first.name}'s, "
                f"{over_roofline:>5} times the roofline's",
                flush=True,
            )
    return [*rounds]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 where a build has failed."""
    import torch

    from bench.cases import grid
    from bench.shapes import own_cases, read_options
    from ndfast.files import expand_home

    parser = argparse.ArgumentParser(
        prog="python -m bench.builds", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("builds", nargs="+", metavar="NAME=LIBRARY", help="of setup.py build_ext")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument("--shape", action="append", metavar="NxD", help="in place of the grid")
    parser.add_argument("--dtype", metavar="DTYPE", help="of --shape")
    options = parser.parse_args(arguments)
    libraries = {}
    for given in options.builds:
        name, _, path = given.partition("=")
        library = expand_home(path)
        if not name or name in libraries or not library.is_file():
            parser.error(f"got {given!r}, expected NAME=LIBRARY, each name once, of a file")
        libraries[name] = library
    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        parser.error("--device: got 'cuda', and PyTorch sees no CUDA GPU; expected cpu")
    device = options.device or ("cuda" if has_gpu else "cpu")
    try:
        shapes, dtype = read_options(options.shape, options.dtype, full=False, telling=False)
    except ValueError as error:
        parser.error(str(error))
    builds = [Build(name, library) for name, library in libraries.items()]
    left = builds
    try:
        for case in own_cases(device, shapes, dtype) if shapes else grid(device, "telling"):
            left = left and compare(left, case, secrets.randbelow(2**31))
    finally:
        for build in builds:
            build.end()
    return int(left != builds)


if __name__ == "__main__":
    sys.exit(main())
