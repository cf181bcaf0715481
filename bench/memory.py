"""What a machine's memory can do, timed in the rounds of a case: torch.add at several sizes."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench.cases import Case, make_inputs
from bench.steps import ROOFLINES, Peer, nd_loss_step
from bench.timing import Timed, prepare

# Two sizes that take as long as a call, two beyond the caches; those between would tell of caches.
ROWS = (1, 4, 16_384, 32_768)
FEATURES = 1024


def adds(like: Case) -> dict[int, Timed]:
    """torch.add(s, t, out=g) by the bytes that it moves; device and dtype of ``like``."""
    cases = [Case(like.device, N, FEATURES, like.dtype, K=1) for N in ROWS]
    step = ROOFLINES["add"].step
    return {case.num_bytes: prepare(Peer(step), make_inputs(case, seed=0)) for case in cases}


def bare_call(like: Case, backend: str) -> Timed:
    """Forward and backward of ndfast where there is next to nothing to do."""
    case = Case(like.device, 8, 64, like.dtype, like.kind, K=1)
    return prepare(Peer(nd_loss_step(case, backend)), make_inputs(case, seed=0))


def figures(of_adds: dict[int, Timed], call: Timed) -> dict[str, Any]:
    """For a record: medians in microseconds, ``adds`` as pairs of bytes and time."""
    pairs = [[num_bytes, 1e6 * median(timed.seconds)] for num_bytes, timed in of_adds.items()]
    return {"adds": pairs, "call_us": 1e6 * median(call.seconds)}
