"""What the forward kernel adds its loss up in: partial sums, and a ticket that is 0 at each launch.

The last program to take the ticket sets it back, so that only launches that may run at the same
time need tickets of their own: those of different streams, and those in CUDA graphs, which replay
on any stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
import triton
from torch import Tensor

MAX_PROGRAMS_PER_SM = 32  # more are not resident at once on sm_80 to sm_100

_GRAPH_TICKETS = 4096
_SPACING = 4  # of int32 tickets: the kernel is compiled for addresses that 16 divides

_graph_tickets: dict[torch.device, Iterator[Tensor]] = {}


def workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """Partial sums and a ticket, for a launch on the current stream of the current device."""
    if is_capturing(device):
        return _new_partials(device), _graph_ticket(device)
    if device.type != "cuda":
        return _stream_workspace(device, 0)
    return _stream_workspace(device, triton.runtime.driver.active.get_current_stream(device.index))


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on the current stream of the current device goes into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def num_sms(device: torch.device) -> int:
    """How many streaming multiprocessors a GPU has; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _stream_workspace(device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Made at the first launch on a stream, and kept."""
    current = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def make() -> tuple[Tensor, Tensor]:
        with torch.cuda.stream(current):
            if device not in _graph_tickets:  # to capture, torch waits until they are zero
                tickets = torch.zeros(_GRAPH_TICKETS, _SPACING, dtype=torch.int32, device=device)
                _graph_tickets[device] = map(tickets.__getitem__, range(_GRAPH_TICKETS))
            return _new_partials(device), _new_ticket(device)

    # In a thread of its own, for the caller's thread may allocate from the memory of a CUDA graph:
    # torch.compile(mode="reduce-overhead") warms up so, and takes back what is no output.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _graph_ticket(device: torch.device) -> Tensor:
    """One that is never handed out again, for a graph may replay at any time."""
    ticket = next(_graph_tickets.get(device, iter(())), None)
    return _new_ticket(device) if ticket is None else ticket  # the graph then clears it


def _new_ticket(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=device)


def _new_partials(device: torch.device) -> Tensor:
    programs = MAX_PROGRAMS_PER_SM * num_sms(device)
    return torch.empty(2 * programs, dtype=torch.float64, device=device)
