"""The options, an allocator that keeps its pages, and the table at the end."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ndfast
from bench import results
from bench.cases import LEFT_OUT, Case, grid, has_autotune, why_not_timed
from bench.report import environment, table
from bench.shapes import DTYPES, own_cases, read_options
from bench.verdict import paragraphs
from ndfast.files import expand_home
from ndfast.train.machine.allocator import keep_freed_memory

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
# What --add has found in the results files.
EARLIER = pytest.StashKey[dict[Path, tuple[str, list[dict[str, Any]]]]]()
SIZE = pytest.StashKey[str]()  # one of bench.cases.SIZES
# (N, D, K) of each --shape, none without one; and the dtype.
OWN_SHAPES = pytest.StashKey[tuple[list[tuple[int, int, int]], torch.dtype]]()
ALLOCATOR = pytest.StashKey[str]()
TABLE_WIDTH = 400  # more than a row needs: the table is as wide as its figures
TEXT_WIDTH = 100

FULL = "ndfast: time the whole grid, and torch.compile's max-autotune in each case, not in four"
TELLING = "ndfast: on a GPU time the twelve cases that tell the most, without max-autotune"
MISSING = (
    "ndfast: with --add, leave out the cases that the results file has; not those that it has "
    "without max-autotune, where that takes part now"
)

ADD = (
    "ndfast: with --results, keep the file's records of cases that are not timed now, where GPU, "
    "torch, Triton and driver are the same"
)

SHAPE = (
    "ndfast: time this shape alone, rows by features, as in 4096x768; 4096x768x100 has 100 "
    "classes, not 1000; may be given several times"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help=FULL)
    parser.addoption("--telling", action="store_true", help=TELLING)
    parser.addoption("--shape", action="append", metavar="NxD", help=SHAPE)
    parser.addoption(
        "--dtype", metavar="DTYPE", help=f"ndfast: of --shape, one of {', '.join(DTYPES)} (float32)"
    )
    parser.addoption(
        "--results",
        type=expand_home,
        metavar="FOLDER",
        help="ndfast: write the GPU's records to FOLDER/<gpu name>.json, after each of them anew",
    )
    parser.addoption("--add", action="store_true", help=ADD)
    parser.addoption("--missing", action="store_true", help=MISSING)


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench/ needs the package pytest-benchmark")
    if config.getoption("add") and config.getoption("results") is None:
        raise pytest.UsageError("--add needs --results, whose file it adds to")
    if config.getoption("missing") and not config.getoption("add"):
        raise pytest.UsageError("--missing needs --add, which keeps what it leaves out")
    if config.getoption("telling") and config.getoption("full"):
        raise pytest.UsageError("--telling and --full: got both, expected one of them")
    try:
        config.stash[OWN_SHAPES] = read_options(
            *(config.getoption(name) for name in ("shape", "dtype", "full", "telling"))
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    chosen = [size for size in ("telling", "full") if config.getoption(size)]
    config.stash[SIZE] = chosen[0] if chosen else "quick"
    config.stash[RECORDS] = []
    config.stash[EARLIER] = {}
    config.stash[ALLOCATOR] = hold_allocator()
    config.option.benchmark_quiet = True  # the table at the end takes the place of its tables


def hold_allocator() -> str:
    """Makes freed memory stay with the process, and says whether that worked.

    malloc gets a buffer of 32 MB fresh from the kernel at each call, and its page faults would take
    longer than the loss.
    """
    if keep_freed_memory():
        return "held (mallopt: M_MMAP_MAX=0, no trimming), so that no page faults are timed"
    return f"not held, {sys.platform} has no such mallopt: large cases include page faults"


def pytest_report_header(config: pytest.Config) -> list[str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cpu = torch.backends.cpu.get_cpu_capability()
    backends = (
        name if reason is None else f"{name} (not timed: {reason})"
        for name, reason in ndfast.available_backends().items()
    )
    threads = f"{torch.get_num_threads()} CPU threads"
    if hasattr(os, "getloadavg"):
        # Where others use the cores too, a parallel loop waits for the scheduler, not for memory:
        # every step takes the same few time slices, and the ratios say nothing.
        threads += f" (load average {os.getloadavg()[0]:.1f} at the start)"
    return [
        f"ndfast: torch {torch.__version__}, {threads}, {cpu}, {gpu}",
        f"backends: {', '.join(backends)}",
        f"allocator: {config.stash[ALLOCATOR]}",
        what_is_timed(config),
    ]


def what_is_timed(config: pytest.Config) -> str:
    if own := config.stash[OWN_SHAPES][0]:
        return f"cases: {len(own)} of --shape, in place of the grid"
    cases, whole = (len(grid("cuda", size)) for size in (config.stash[SIZE], "full"))
    return f"cases of a GPU: {cases} of the grid's {whole:,}" + (
        "" if cases == whole else " (--full times all)"
    )


def cases_of(config: pytest.Config, device: str) -> list[Case]:
    """The user's own shapes where --shape gives them, else the grid's."""
    shapes, dtype = config.stash[OWN_SHAPES]
    if not shapes:
        return grid(device, config.stash[SIZE])
    is_here = device == "cpu" or torch.cuda.is_available()
    return own_cases(device, shapes, dtype) if is_here else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.stash[OWN_SHAPES][0]:
        leave_out(config, items, {item for item in items if "workload" not in params_of(item)})
    if not config.getoption("missing") or not torch.cuda.is_available():
        return
    now = environment("cuda")
    path = results.path_of(config.getoption("results"), now["gpu"])
    records = results.load(path)[1] if path.exists() else []
    size = config.stash[SIZE]
    left_out = set()
    for item in items:
        params = params_of(item)
        if "workload" not in params:
            continue
        case, backend = params["workload"], params["backend"]
        # One with nothing to time would have its case's peers compiled only to be skipped.
        if is_timed(case, backend, records, now, size) or why_not_timed(backend, case):
            left_out.add(item)
    leave_out(config, items, left_out)


def params_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def leave_out(config: pytest.Config, items: list[pytest.Item], left_out: set[pytest.Item]) -> None:
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=[*left_out])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("missing") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # nothing is missing


def is_timed(
    case: Case, backend: str, records: list[dict[str, Any]], now: dict[str, Any], size: str
) -> bool:
    """Whether ``records`` have a case's figures, with all peers that it has in a grid of ``size``.

    Args:
        case: of the grid.
        backend: of ndfast.
        records: of the results file.
        now: the `bench.report.environment`, of which a record has to have the same versions.
        size: one of `bench.cases.SIZES`.
    """
    return any(
        (r["case"], r["backend"]) == (str(case), backend)
        and all(r[name] == now[name] for name in results.VERSIONS)
        and not (
            has_autotune(case, size) and r["others"].get("autotune", {}).get("why_not") == LEFT_OUT
        )
        for r in records
    )


@pytest.fixture
def keep_record(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Takes a row of the table; a GPU's is in the results file before the next is timed."""

    def keep(record: dict[str, Any]) -> None:
        request.config.stash[RECORDS].append(record)
        if record["gpu"] is not None:
            save_records(request.config, record["gpu"])

    return keep


def save_records(config: pytest.Config, gpu: str) -> None:
    """Writes the GPU's results file, where --results asks for it."""
    folder: Path | None = config.getoption("results")
    if folder is None:
        return
    path = results.path_of(folder, gpu)
    records = [r for r in config.stash[RECORDS] if r["gpu"] == gpu]
    command = shlex.join(["pytest", *config.invocation_params.args])
    earlier = config.stash[EARLIER]
    if path not in earlier and config.getoption("add") and path.exists():
        earlier[path] = results.load(path)
    if path in earlier:
        command, records = results.added_to(earlier[path], command, records)
    results.save(path, command, records)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    records = config.stash[RECORDS]
    if not records:
        return
    terminalreporter.write("\n" + table_text(records))
    for text in paragraphs(records):
        terminalreporter.write(f"\n{textwrap.fill(text, TEXT_WIDTH)}\n")


def table_text(records: list[dict[str, Any]]) -> str:
    try:
        from rich.console import Console
    except ImportError:
        return "no table: it needs the package rich; --results keeps the figures\n"
    console = Console(width=TABLE_WIDTH, force_terminal=False)
    with console.capture() as text:
        console.print(table(records))
    return text.get()
