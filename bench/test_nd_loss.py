"""Each case and backend: checked against the definition in float64, then timed beside its peers."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import memory
from bench.cases import LEFT_OUT, Case, Inputs, has_autotune, make_inputs, why_not_timed
from bench.conftest import OWN_SHAPES, SIZE, cases_of
from bench.report import Times, record
from bench.steps import (
    Peer,
    Step,
    accumulating_step,
    forward_step,
    nd_loss_step,
    peers,
    yardsticks,
)
from bench.timing import Timed, clock, prepare, take_turns, time_eagerly
from ndfast.backends.reference import row_loss
from ndfast.dispatch import BACKENDS

CHECKED_ROWS = 4096  # at a time, for the definition in float64 takes ten times its inputs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
    cases = [pytest.param(case, id=str(case)) for case in cases_of(config, "cpu")]
    cases += [
        pytest.param(case, id=str(case), marks=(pytest.mark.gpu, no_gpu))
        for case in cases_of(config, "cuda")
    ]
    metafunc.parametrize("workload", cases, indirect=True)
    metafunc.parametrize("backend", BACKENDS)


@dataclass(frozen=True)
class Workload:
    """A case's inputs, what must come out for the first of them, and everyone but ndfast.

    Attributes:
        case: what is timed.
        seed: of the inputs.
        inputs: sets of them.
        loss: 0-dim, the definition in float64.
        gradient: [N, D], likewise.
        gradient_error: what a row's gradient may be off by, relative to it.
        steps: the peers that may be timed eagerly.
        others: peers, yardsticks and rooflines.
        why_not: for a peer that does not run the reason.
        adds: torch.add by the bytes that it moves, for a shape of --shape alone.
    """

    case: Case
    seed: int
    inputs: list[Inputs]
    loss: Tensor
    gradient: Tensor
    gradient_error: float
    steps: dict[str, Step] = field(default_factory=dict)
    others: dict[str, Timed] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    adds: dict[int, Timed] = field(default_factory=dict)


@pytest.fixture(scope="module")
def workload(request: pytest.FixtureRequest) -> Iterator[Workload]:
    """Shared by the backends of a case, so that its peers are compiled once."""
    workload = make_workload(request.param, request.config.stash[SIZE])
    if request.config.stash[OWN_SHAPES][0]:
        workload.adds.update(memory.adds(request.param))
    yield workload
    for of_peers in (workload.steps, workload.others, workload.inputs, workload.adds):
        of_peers.clear()  # their CUDA graphs hold memory that the next case may need
    torch.compiler.reset()  # past eight shapes a compiled function would quietly run in eager
    gc.collect()
    torch.cuda.empty_cache()


def make_workload(case: Case, size: str = "full") -> Workload:
    workload = without_peers(case, secrets.randbelow(2**31))
    x = workload.inputs[0]
    for name, step in yardsticks(case, x).items():
        workload.others[name] = prepare(Peer(step), workload.inputs)
    for name, peer in peers(case, x.class_means).items():
        if name.startswith("autotune") and not has_autotune(case, size):
            workload.why_not[name] = LEFT_OUT
        else:
            add_peer(workload, name, peer)
    return workload


def without_peers(case: Case, seed: int) -> Workload:
    inputs = make_inputs(case, seed)
    x = inputs[0]
    loss, gradient = definition(case, x, torch.float64)
    gradient_error = 1e-5
    if case.dtype != torch.float32:
        rounded = definition(case, x, torch.float32)[1].to(case.dtype)
        gradient_error = 2 * row_error(rounded, gradient)
    return Workload(case, seed, inputs, loss, gradient, gradient_error)


def definition(case: Case, x: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient by `ndfast.backends.reference` and autograd in ``dtype``."""
    loss = torch.zeros((), dtype=dtype, device=case.device)
    gradient = torch.empty(case.N, case.D, dtype=dtype, device=case.device)
    for first in range(0, case.N, CHECKED_ROWS):
        part = slice(first, first + CHECKED_ROWS)
        student = x.student.detach()[part].to(dtype).requires_grad_()
        centres = x.class_means[x.target[part]].to(dtype)
        share = row_loss(student, x.teacher[part].to(dtype), centres).sum() / case.N
        loss += share.detach()
        gradient[part] = torch.autograd.grad(share, student, x.upstream.to(dtype))[0]
    return loss, gradient if x.grad_features is None else gradient + x.grad_features


def row_error(gradient: Tensor, expected: Tensor) -> float:
    """The largest error of a row, relative to the row's gradient."""
    return ((gradient - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def check(name: str, step: Step, workload: Workload) -> None:
    """A step that is wrong is an error, not a number."""
    loss, *gradients = step(workload.inputs[0])
    where = f"{name}, {workload.case}, seed {workload.seed}"
    error = ((loss - workload.loss) / workload.loss).abs().item()
    assert error <= 1e-5, f"{where}: the loss is off by {error:.1e} of itself"
    for gradient in gradients:
        error, allowed = row_error(gradient, workload.gradient), workload.gradient_error
        assert error <= allowed, f"{where}: a row's gradient is off by {error:.1e} of {allowed:.1e}"


def add_peer(workload: Workload, name: str, peer: Peer) -> None:
    """One that does not compile, or cannot be captured, takes no part and leaves its reason."""
    try:
        check(name, peer.step, workload)
        workload.others[name] = prepare(peer, workload.inputs)
    except AssertionError:
        raise
    except Exception as error:  # whatever someone else's compiler raises
        workload.why_not[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return
    if not peer.waits:
        workload.steps[name] = peer.step


@pytest.mark.benchmark(timer=clock)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile's own
def test_nd_loss(
    workload: Workload,
    backend: str,
    benchmark: Any,
    keep_record: Callable[[dict[str, Any]], None],
) -> None:
    case, inputs = workload.case, workload.inputs
    if (reason := why_not_timed(backend, case)) is not None:
        pytest.skip(reason)
    step = nd_loss_step(case, backend)
    check(f"ndfast on {backend}", step, workload)
    ours = prepare(Peer(step), inputs)
    others, steps = dict(workload.others), {"ndfast": step, **workload.steps}
    if case.device == "cuda" or case.kind == "loss":
        others["forward"] = prepare(Peer(forward_step(case, backend)), inputs)
    if case.kind == "attached":
        steps["accumulate"] = accumulating_step(case, backend)
        check(f"ndfast on {backend}, accumulating", steps["accumulate"], workload)
        others["accumulate"] = prepare(Peer(steps["accumulate"]), inputs)
    extra = {f"add of {num_bytes} bytes": timed for num_bytes, timed in workload.adds.items()}
    if extra:
        extra["bare call"] = memory.bare_call(case, backend)
    take_turns(benchmark, ours, others | extra)
    if benchmark.enabled:  # --benchmark-disable checks and times nothing
        times = Times(
            ours.seconds,
            {name: timed.seconds for name, timed in others.items()},
            time_eagerly(steps, inputs) if case.device == "cuda" else {},
            workload.why_not,
        )
        benchmark.extra_info.update(record(case, backend, workload.seed, ours.calls, times))
        if extra:
            benchmark.extra_info["memory"] = memory.figures(workload.adds, extra["bare call"])
        keep_record(benchmark.extra_info)
