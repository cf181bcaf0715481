"""What compute-sanitizer gets to see, and what is made of what it says; runs without a GPU."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import run_sanitizer
import torch
from cases import TARGETS, every_option
from emulated_cuda import kernels
from on_gpu import DTYPES
from sanitize import BAD_LABELS, SHAPES, calls, make

import ndfast

CALLS = list(calls())
MIXED = ("indices", "mix by row")


def test_the_calls_cover_everything() -> None:
    assert len(CALLS) >= 200
    for attached in (False, True):
        drawn = [call.drawn for call in CALLS if call.drawn["attached"] == attached]
        for option in every_option():
            assert any(option.items() <= given.items() for given in drawn), (attached, option)
        assert {(given["N"], given["D"]) for given in drawn} >= set(SHAPES)
        assert {(given["dtype"], given.get("target")) for given in drawn} >= set(
            itertools.product(DTYPES, TARGETS)
        )
    met = [((call.drawn["N"], call.drawn["D"]), call.drawn["dtype"], call.offset) for call in CALLS]
    assert {(shape, dtype) for shape, dtype, _ in met} >= set(itertools.product(SHAPES, DTYPES))
    assert {(shape, offset) for shape, _, offset in met} >= set(
        itertools.product(SHAPES, (0, 1, 3))
    )
    assert {(dtype, offset) for _, dtype, offset in met} >= set(
        itertools.product(DTYPES, (0, 1, 3))
    )
    bad = [(call.drawn, call.bad_labels) for call in CALLS if call.bad_labels is not None]
    for name, values in (("dtype", DTYPES), ("target", MIXED), ("attached", (False, True))):
        assert {(given[name], labels) for given, labels in bad} == set(
            itertools.product(values, BAD_LABELS)
        ), name
    assert max(call.drawn["D"] for call in CALLS) > 16_384
    cut = [call for call in CALLS if max(call.counts, default=0) >= 1024 and 0 in call.counts]
    assert {(call.drawn["dtype"], call.drawn["target"]) for call in cut} == set(
        itertools.product(DTYPES, MIXED)
    )


@pytest.mark.usefixtures("emulated_cuda")
def test_the_calls_launch_every_kernel(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    # A GPU's backend does not look at labels.
    monkeypatch.setattr("ndfast.backends.Rows.check_labels", lambda _: None)
    take_launched = torch.ops.ndfast_emulator.take_launched
    take_launched()
    for call in CALLS:
        make(call, "cuda", "cpu")
    launched = {line.split()[0] for line in take_launched().splitlines()}
    assert kernels() == launched


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_calls_run(backend: str, seed: int) -> None:
    reason = ndfast.available_backends()[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    for call in CALLS:
        if call.bad_labels is not None:  # on a GPU a NaN row, which `make` looks for
            with pytest.raises(IndexError):
                make(call, backend, "cpu")
        else:
            make(call, backend, "cpu")


def run_with(
    tmp_path: Path, sanitizer: str | None, backend: str = "cuda"
) -> subprocess.CompletedProcess[str]:
    """run_sanitizer.py where compute-sanitizer is the shell script given, or absent."""
    environment = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "no toolkit")}
    if sanitizer is not None:
        program = tmp_path / "compute-sanitizer"
        program.write_text(f"#!/bin/sh\n{sanitizer}\n")
        program.chmod(0o755)
    script = Path(run_sanitizer.__file__)
    return subprocess.run(
        [sys.executable, script, "--backend", backend], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_the_tool_a_sentence(tmp_path: Path) -> None:
    done = run_with(tmp_path, None)
    assert done.returncode == 0
    assert done.stdout == "compute-sanitizer is not installed: nothing was looked at\n"


def test_each_tool_sees_the_calls(tmp_path: Path) -> None:
    done = run_with(tmp_path, 'echo "$@, caching off: $PYTORCH_NO_CUDA_MEMORY_CACHING"')
    assert done.returncode == 0
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"{tool}: clean\n--tool {tool} --error-exitcode 99" in done.stdout
    assert done.stdout.count("sanitize.py --backend cuda, caching off: 1") == 4


@pytest.mark.parametrize(("backend", "kernels"), [("cuda", "ndfast"), ("triton", "ward_kernel")])
def test_races_and_barriers_are_looked_for_in_own_kernels(
    tmp_path: Path, backend: str, kernels: str
) -> None:
    done = run_with(tmp_path, 'echo "$@"', backend)
    filtered = {line.split()[1] for line in done.stdout.splitlines() if "--kernel-name" in line}
    assert filtered == {"racecheck", "synccheck"}
    assert done.stdout.count(f"--kernel-name kernel_substring={kernels} ") == 2


def test_the_filter_fits_tritons_kernels() -> None:
    pytest.importorskip("triton")
    from ndfast.backends.triton.backward_kernel import backward_kernel
    from ndfast.backends.triton.forward_kernel import forward_kernel

    part = run_sanitizer.OWN_KERNELS["triton"]
    assert all(part in kernel.fn.__name__ for kernel in (forward_kernel, backward_kernel))


def test_out_of_time_alone_is_told_without_another_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def out_of_time(program: str, tool: str, *rest: object) -> tuple[int, str]:
        seen.append(tool)
        return run_sanitizer.OUT_OF_TIME, "not done"

    monkeypatch.setattr(run_sanitizer, "sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(run_sanitizer, "run", out_of_time)
    monkeypatch.setattr(sys, "argv", ["run_sanitizer.py"])
    assert run_sanitizer.main() == 1
    assert sorted(seen) == sorted(run_sanitizer.TOOLS)
    assert capsys.readouterr().out.count("not done") == 4


def test_a_finding_fails(tmp_path: Path) -> None:
    done = run_with(tmp_path, 'case "$*" in *racecheck*) echo "a hazard"; exit 99;; esac')
    assert done.returncode == 1
    assert "racecheck: exit status 99\na hazard" in done.stdout
    assert "memcheck: clean" in done.stdout


def test_a_finding_in_every_program_fails_too(tmp_path: Path) -> None:
    done = run_with(tmp_path, "echo a read past the end; exit 99")
    assert done.returncode == 1
    assert done.stdout.count("exit status 99\na read past the end") == 4


def test_a_machine_that_does_not_allow_it_is_said(tmp_path: Path) -> None:
    done = run_with(tmp_path, "echo Device not supported; exit 1")
    assert done.returncode == 0
    assert done.stdout == (
        "compute-sanitizer cannot work on this machine: nothing was looked at "
        "(Device not supported)\n"
    )


def test_out_of_time_the_program_under_the_tool_is_killed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    pid = tmp_path / "pid"
    tool.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {pid}; wait\n")
    tool.chmod(0o755)
    monkeypatch.setattr(run_sanitizer, "SECONDS", 2)
    status, said = run_sanitizer.run(str(tool), "memcheck", [])
    assert (status, said) == (run_sanitizer.OUT_OF_TIME, "not done after 2 s")
    try:
        under = os.pidfd_open(int(pid.read_text()))
    except ProcessLookupError:
        return
    assert select.select([under], [], [], 30)[0], "it lives on"


# Runs a program whose signals another thread gets, as the system may choose.
ELSEWHERE = """
import runpy, signal, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("by", [[], ["-c", ELSEWHERE]], ids=["main thread", "another thread"])
def test_interrupted_the_tools_end_and_tell_what_they_have(tmp_path: Path, by: list[str]) -> None:
    tool, ready = tmp_path / "compute-sanitizer", tmp_path / "ready"
    os.mkfifo(ready)
    tool.write_text(f"#!/bin/sh\necho a hazard\necho $$ > {ready}\nexec sleep 1000\n")
    tool.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, *by, run_sanitizer.__file__], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    tools: list[int] = []
    while len(tools) < len(run_sanitizer.TOOLS):
        tools += [os.pidfd_open(int(pid)) for pid in ready.read_text().split()]
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert said.count("a hazard\nstopped\n") == len(tools)
    assert all(select.select([pidfd], [], [], 30)[0] for pidfd in tools), "one lives on"
    for pidfd in tools:
        os.close(pidfd)
