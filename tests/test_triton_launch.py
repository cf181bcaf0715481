"""How the Triton backend chooses a layout and a workspace, and where it says that it cannot run."""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import runpy
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import assert_as_defined, draw
from stand_in_driver import output_beside

pytest.importorskip("triton", reason="the Triton backend needs triton")

import triton

from ndfast.backends import triton as backend
from ndfast.backends.triton import launch_table, launcher, workspace
from ndfast.backends.triton.launch_table import LaunchConfig, default_config


@pytest.mark.skipif(
    backend.unusable(torch.device("cpu")) is not None,
    reason="needs TRITON_INTERPRET=1, set where no GPU is",
)
def test_autotuning_takes_the_fastest_and_measures_once(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    layouts = [LaunchConfig(rows, 64, num_warps=1, programs_per_sm=2) for rows in (1, 2)]
    monkeypatch.setattr(launch_table, "AUTOTUNE", True)
    monkeypatch.setattr(launch_table, "_measured", {})
    monkeypatch.setattr(launch_table, "candidates", lambda D, itemsize: layouts)
    timed = []

    def timer(launch: Any) -> float:
        launch()
        timed.append(launch)
        return 2.0 if len(timed) % 2 else 1.0  # the second candidate wins

    monkeypatch.setattr(launch_table, "timer", timer)
    case = draw(3, 37, 2, torch.float32)
    assert_as_defined(case, "triton", "while timing")
    kernels = len(launch_table._measured)
    assert kernels == 2  # forward, and backward of the teacher
    assert len(timed) == kernels * len(layouts)
    assert set(launch_table._measured.values()) == {layouts[1]}
    assert_as_defined(case, "triton", "once timed")
    assert len(timed) == kernels * len(layouts)
    draw(3, 37, 2, torch.bfloat16).run("triton")
    assert len(launch_table._measured) == 2 * kernels

    launched: list[LaunchConfig] = []
    launch_with = launcher._launch_with

    def watched(config: LaunchConfig, *arguments: Any) -> None:
        launched.append(config)
        launch_with(config, *arguments)

    monkeypatch.setattr(launcher, "_launch_with", watched)
    monkeypatch.setattr(workspace, "is_capturing", lambda device: True)
    assert_as_defined(case, "triton", "in a CUDA graph, timed before")
    assert layouts[1] in launched
    assert layouts[0] not in launched
    with pytest.raises(RuntimeError, match=r"got a layout to time in a CUDA-graph capture; "):
        draw(3, 38, 2, torch.float32).run("triton")
    assert len(launch_table._measured) == 2 * kernels


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("1", True)])
def test_autotuning_is_off_unless_asked_for(
    value: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NDFAST_TRITON_AUTOTUNE", value)
    assert runpy.run_path(launch_table.__file__)["AUTOTUNE"] is on


@pytest.mark.parametrize("D", [1, 64, 1000, 4096, 16_384])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_candidates_are_layouts_that_triton_takes(D: int, itemsize: int) -> None:
    configs = launch_table.candidates(D, itemsize)
    assert configs[0] == default_config(D, itemsize)
    assert len(set(configs)) == len(configs) > 1
    for config in configs:
        for size in (config.rows, config.block_d, config.num_warps):
            assert size == triton.next_power_of_2(size)
        assert 1 <= config.num_warps <= 16
        assert config.rows == 1 or config.block_d >= D
        assert config.programs_per_sm >= 1


CPU = torch.device("cpu")


@pytest.fixture
def fresh_workspaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has launched nothing yet."""
    monkeypatch.setattr(
        workspace, "_stream_workspace", functools.cache(workspace._stream_workspace.__wrapped__)
    )
    monkeypatch.setattr(workspace, "_graph_tickets", {})


@pytest.mark.usefixtures("fresh_workspaces")
def test_launches_that_may_run_at_the_same_time_have_tickets_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workspace, "_GRAPH_TICKETS", 3)
    eager = workspace.workspace(CPU)
    assert all(map(operator.is_, workspace.workspace(CPU), eager))
    other_stream = workspace._stream_workspace(CPU, 1)
    monkeypatch.setattr(workspace, "is_capturing", lambda device: True)
    captured = [workspace.workspace(CPU) for _ in range(3)]
    tickets = [ticket for _, ticket in (eager, other_stream, *captured)]
    addresses = {ticket.data_ptr() for ticket in tickets}
    assert len(addresses) == len(tickets)
    assert all(address % 16 == 0 for address in addresses)
    used_up = [workspace.workspace(CPU)[1] for _ in range(2)]
    assert used_up[0].data_ptr() != used_up[1].data_ptr()
    assert not addresses & {ticket.data_ptr() for ticket in used_up}
    assert all((ticket == 0).all() and ticket.dtype == torch.int32 for ticket in tickets + used_up)


@pytest.mark.usefixtures("fresh_workspaces")
def test_a_capture_before_any_launch_clears_its_ticket_in_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workspace, "is_capturing", lambda device: True)
    assert workspace.workspace(CPU)[1].item() == 0
    assert not workspace._graph_tickets  # or a graph's memory would be everybody's
    monkeypatch.setattr(workspace, "is_capturing", lambda device: False)
    workspace.workspace(CPU)
    assert list(workspace._graph_tickets) == [CPU]


@pytest.mark.usefixtures("fresh_workspaces")
def test_what_outlasts_a_call_is_allocated_in_a_thread_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []

    def watched(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watching(*args: Any, **kwargs: Any) -> torch.Tensor:
            threads.append(threading.get_ident())
            return allocate(*args, **kwargs)

        return watching

    for name in ("zeros", "empty"):
        monkeypatch.setattr(torch, name, watched(getattr(torch, name)))
    workspace.workspace(CPU)
    assert len(threads) == 3  # partial sums, the ticket, the graphs' tickets
    assert threading.get_ident() not in threads


@pytest.fixture
def stream_numbers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the driver's cuStreamGetId gives out, the last first."""
    numbers: list[int] = []
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_ulonglong))

    @prototype
    def get_id(stream: int | None, number: Any) -> int:
        if not numbers:
            return 400
        number[0] = numbers.pop()
        return 0

    monkeypatch.setattr(workspace, "_cu_stream_get_id", lambda: get_id)
    return numbers


def test_a_handle_that_comes_back_is_another_stream(
    monkeypatch: pytest.MonkeyPatch, stream_numbers: list[int]
) -> None:
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(workspace, "is_capturing", lambda device: False)
    active = SimpleNamespace(get_current_stream=lambda index: 0x7000 + index)
    monkeypatch.setattr(triton.runtime.driver, "_active", active)
    monkeypatch.setattr(workspace, "_stream_workspace", lambda *key: key)
    stream_numbers += [7, 2**63 + 5, 7]
    streams = [workspace.workspace(gpu) for _ in range(3)]
    assert streams == [(gpu, 7), (gpu, 2**63 + 5), (gpu, 7)]
    with pytest.raises(RuntimeError, match="CUDA error 400"):
        workspace.workspace(gpu)


def test_without_tritons_name_for_it_torch_tells_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(workspace, "is_capturing", lambda device: False)
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace())
    streams = {gpu: SimpleNamespace(cuda_stream=0x7001)}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.__getitem__)
    monkeypatch.setattr(workspace, "_stream_workspace", lambda *key: key)
    monkeypatch.setattr(workspace, "_cu_stream_get_id", lambda: None)
    assert workspace.workspace(gpu) == (gpu, 0x7001)


def test_the_drivers_own_function_is_asked(tmp_path: Path) -> None:
    script = (
        "from ndfast.backends.triton.workspace import _stream_id; "
        "print(_stream_id(2**40 + 7), _stream_id(0))"
    )
    told = output_beside(12040, script, tmp_path)
    assert told.split() == [str(2**64 - 1 - (2**40 + 7)), str(2**64 - 1)]


def test_without_a_cuda_driver_the_handle_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_cu_stream_get_id", lambda: None)  # ROCm
    assert workspace._stream_id(0x7001) == 0x7001


def test_streams_that_are_gone_do_not_keep_their_workspaces() -> None:
    kept = [weakref.ref(workspace._stream_workspace(CPU, -1 - i)[0]) for i in range(300)]
    alive = [i for i, partials in enumerate(kept) if partials() is not None]
    assert alive == list(range(300 - workspace._STREAMS, 300))


@pytest.mark.usefixtures("fresh_workspaces")
def test_a_workspace_is_cleared_by_the_thread_that_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The default stream of each thread has one handle: in another thread it is another stream.
    cleared = []
    clear = torch.Tensor.zero_

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        cleared.append((tensor.numel(), threading.get_ident()))
        return clear(tensor)

    monkeypatch.setattr(torch.Tensor, "zero_", watched)
    _, ticket = workspace.workspace(CPU)
    here, spacing = threading.get_ident(), workspace._SPACING
    assert sorted(cleared) == [(spacing, here), (spacing * workspace._GRAPH_TICKETS, here)]
    assert ticket.item() == 0


def test_cpu_tensors_need_the_interpreter() -> None:
    script = (
        "import torch; from ndfast.backends import triton as t; "
        "print(t.unusable(torch.device('cpu')))"
    )
    assert "TRITON_INTERPRET=1" in _python(script, TRITON_INTERPRET="0")
    has_it = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it without a GPU
    assert (backend.unusable(CPU) is None) == has_it


def test_triton_may_be_missing() -> None:
    script = (
        "import sys; sys.modules['triton'] = None; import torch; "
        "from ndfast.backends import triton as t; print(t.unusable(torch.device('cuda')))"
    )
    assert _python(script).startswith("triton cannot be imported:")


def test_old_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_interpreted", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in str(backend.unusable(torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert backend.unusable(torch.device("cuda")) is None


def _python(script: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    return done.stdout.strip()
