"""Each case and backend: checked against the definition in float64, then timed beside its peers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import Case, Inputs, grid, make_inputs
from bench.report import record
from bench.steps import Step, mean_loss, nd_loss_step, peers, yardsticks
from bench.timing import Timed, clock, prepare, take_turns
from ndfast.dispatch import BACKENDS, choose


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("full")
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
    cases = [pytest.param(case, id=str(case)) for case in grid("cpu", full)]
    cases += [
        pytest.param(case, id=str(case), marks=(pytest.mark.gpu, no_gpu))
        for case in grid("cuda", full)
    ]
    metafunc.parametrize("workload", cases, indirect=True)
    metafunc.parametrize("backend", BACKENDS)


@dataclass(frozen=True)
class Workload:
    """A case's inputs, what must come out for the first of them, and everyone but ndfast."""

    case: Case
    seed: int
    inputs: list[Inputs]
    loss: Tensor
    gradient: Tensor
    gradient_error: float
    others: dict[str, Timed]


@pytest.fixture(scope="module")
def workload(request: pytest.FixtureRequest) -> Workload:
    """Shared by the backends of a case, so that its peers are compiled once."""
    case = request.param
    seed = secrets.randbelow(2**31)
    inputs = make_inputs(case, seed)
    x = inputs[0]
    loss, gradient = definition(x, torch.float64)
    gradient_error = 1e-5
    if case.dtype != torch.float32:
        rounded = definition(x, torch.float32)[1].to(case.dtype)
        gradient_error = 2 * row_error(rounded, gradient)
    others = {name: prepare(step, inputs) for name, step in yardsticks(case, x).items()}
    workload = Workload(case, seed, inputs, loss, gradient, gradient_error, others)
    for name, step in peers(case, x.class_means).items():
        check(name, step, workload)
        others[name] = prepare(step, inputs, capturable=name != "loop")
    return workload


def definition(x: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient by `ndfast.backends.reference` and autograd in ``dtype``."""
    student = x.student.detach().to(dtype).requires_grad_()
    loss = mean_loss(student, x.teacher.to(dtype), x.class_means, x.target)
    return loss.detach(), torch.autograd.grad(loss, student, x.upstream.to(dtype))[0]


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


@pytest.mark.benchmark(timer=clock)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile's own
def test_nd_loss(
    workload: Workload, backend: str, benchmark: Any, records: list[dict[str, Any]]
) -> None:
    case, others = workload.case, workload.others
    skip_unless_fit(backend, case.device)
    step = nd_loss_step(case, backend)
    check(f"ndfast on {backend}", step, workload)
    ours = prepare(step, workload.inputs)
    take_turns(benchmark, ours, others)
    if benchmark.enabled:  # --benchmark-disable checks and times nothing
        seconds = {"ndfast": ours.seconds, **{name: t.seconds for name, t in others.items()}}
        benchmark.extra_info.update(record(case, backend, workload.seed, ours.calls, seconds))
        records.append(benchmark.extra_info)


def skip_unless_fit(backend: str, device: str) -> None:
    if backend == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter is for debugging, not for speed")
    try:
        choose(torch.device(device), backend)
    except RuntimeError as reason:
        pytest.skip(str(reason))
