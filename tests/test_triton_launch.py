"""How the Triton backend chooses a layout and a workspace, and where it says that it cannot run."""

from __future__ import annotations

import functools
import operator
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import assert_as_defined, draw

pytest.importorskip("triton", reason="the Triton backend needs triton")

import triton

from ndfast.backends import triton as backend
from ndfast.backends.triton import launch_table, workspace
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


def test_cpu_tensors_need_the_interpreter() -> None:
    script = (
        "import torch; from ndfast.backends import triton as t; "
        "print(t.unusable(torch.device('cpu')))"
    )
    assert "TRITON_INTERPRET=1" in _python(script, TRITON_INTERPRET="0")
    assert _python(script, TRITON_INTERPRET="1") == "None"


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
