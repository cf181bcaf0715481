"""What the forward kernel adds its loss up in: partial sums, and a ticket that is 0 at each launch.

The last program to take the ticket sets it back, so that only launches that may run at the same
time need tickets of their own: those of different streams, and those in CUDA graphs, which replay
on any stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

MAX_PROGRAMS_PER_SM = 32  # more are not resident at once on sm_80 to sm_120

_STREAMS = 128  # whose workspaces are kept, 70 KB each on a GPU of 132 multiprocessors
_GRAPH_TICKETS = 4096
_SPACING = 4  # of int32 tickets: the kernel is compiled for addresses that 16 divides

_graph_tickets: dict[torch.device, Iterator[Tensor]] = {}


def workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """Partial sums and a ticket, for a launch on the current stream of the current device."""
    if is_capturing(device):
        return _new_partials(device), _graph_ticket(device)
    if device.type != "cuda":
        return _stream_workspace(device, 0)
    return _stream_workspace(device, _stream_id(_current_stream(device)))


def _current_stream(device: torch.device) -> int:
    """The handle of the current stream; torch takes longer to tell it."""
    try:
        return triton.runtime.driver.active.get_current_stream(device.index)
    except AttributeError:  # Triton does not promise these names
        return torch.cuda.current_stream(device).cuda_stream


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on the current stream of the current device goes into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_in_capture(device: torch.device, what: str, why: str) -> None:
    """Raises before the driver would, which ends the capture, and leaves Triton with no code.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    if is_capturing(device):
        raise RuntimeError(
            f"nd_loss: backend 'triton': got {what} in a CUDA-graph capture; expected the same "
            f"call once before it, for a capture {why}"
        )


def _stream_id(handle: int) -> int:
    """A stream's number, which no other stream of the process ever has: its handle may come back
    when it is gone, and that of the default stream of each thread is the same for all of them.
    """
    get_id = _cu_stream_get_id()
    if get_id is None:
        return handle
    number = ctypes.c_ulonglong()
    if error := get_id(handle, ctypes.byref(number)):
        raise RuntimeError(f"ndfast: CUDA error {error} in asking for the stream's number")
    return number.value


@cache
def _cu_stream_get_id() -> Any:
    """The CUDA driver's function; None without such a driver (ROCm)."""
    try:
        get_id = ctypes.CDLL("libcuda.so.1").cuStreamGetId
    except (OSError, AttributeError):
        return None
    get_id.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return get_id


@cache
def num_sms(device: torch.device) -> int:
    """How many streaming multiprocessors a GPU has; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(_STREAMS)
def _stream_workspace(device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Made at the first launch on a stream, and kept while it is one of the last.

    One that is dropped goes back to torch's allocator, which gives its memory out again on the same
    stream, and so behind its launches.
    """
    current = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def make() -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.cuda.stream(current):
            graph_tickets = None if device in _graph_tickets else _tickets(device, _GRAPH_TICKETS)
            return _new_partials(device), _tickets(device, 1), graph_tickets

    # In a thread of its own, for the caller's thread may allocate from the memory of a CUDA graph:
    # torch.compile(mode="reduce-overhead") warms up so, and takes back what is no output. Only the
    # caller's thread clears it: the default stream of each thread is another one there.
    with ThreadPoolExecutor(1) as thread:
        partials, ticket, graph_tickets = thread.submit(make).result()
    if graph_tickets is not None:  # to capture, torch waits until they are zero
        graph_tickets.zero_()
        _graph_tickets[device] = map(graph_tickets.__getitem__, range(_GRAPH_TICKETS))
    return partials, ticket.zero_()[0, 0]


def _graph_ticket(device: torch.device) -> Tensor:
    """One that is never handed out again, for a graph may replay at any time."""
    ticket = next(_graph_tickets.get(device, iter(())), None)
    return _new_ticket(device) if ticket is None else ticket  # the graph then clears it


def _tickets(device: torch.device, count: int) -> Tensor:
    """Not yet cleared."""
    return torch.empty(count, _SPACING, dtype=torch.int32, device=device)


def _new_ticket(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=device)


def _new_partials(device: torch.device) -> Tensor:
    programs = MAX_PROGRAMS_PER_SM * num_sms(device)
    return torch.empty(2 * programs, dtype=torch.float64, device=device)
