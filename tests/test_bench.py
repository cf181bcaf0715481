"""The benchmark's grid, and that each of its steps does the work it is timed for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="bench/ needs pytest-benchmark")

from bench.cases import KINDS, Case, grid, has_autotune, make_inputs
from bench.steps import (
    COMPILE_MODES,
    ROOFLINES,
    Peer,
    accumulating_step,
    forward_step,
    nd_loss_step,
    peers,
    yardsticks,
)
from bench.test_nd_loss import Workload, add_peer, check, make_workload
from bench.timing import EAGER_CALLS, time_eagerly

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_grids_hold_what_they_promise() -> None:
    full, quick = grid("cuda", "full"), grid("cuda", "quick")
    assert len(full) == len({str(case) for case in full}) == 7 * 6 * 3 * 3 * 2 * 2
    assert set(quick) <= set(full)
    assert {case.way for case in quick} == {"fused", "deferred", "attached"}
    assert {case.kind for case in quick} == {"loss", "attached", "norms"}
    assert {(case.N, case.D) for case in quick} >= {(256, 512), (4096, 2048)}
    for axis in ("N", "D", "K", "dtype", "means_dtype"):
        values = [{getattr(case, axis) for case in cases} for cases in (full, quick)]
        assert values[0] == values[1], axis
    full, quick = grid("cpu", "full"), grid("cpu", "quick")
    assert set(quick) <= set(full)
    assert {case.kind for case in full} == {*KINDS}
    assert {case.way for case in quick} == {"fused", "attached", "forward"}
    assert {case.dtype for case in quick} == set(DTYPES)
    assert {(case.kind, case.way) for case in full} == {
        ("loss", "fused"), ("norms", "fused"), ("forward", "forward"), ("attached", "attached"),
    }  # fmt: skip


def test_the_telling_cases_tell_of_every_target() -> None:
    telling = grid("cuda", "telling")
    assert len(telling) == 12
    assert telling == grid("cuda", "quick")[:12]
    assert {case.way for case in telling} == {"fused", "deferred", "attached"}
    assert {case.kind for case in telling} == {"loss", "attached", "norms"}
    assert {case.dtype for case in telling} == set(DTYPES)
    assert {(case.N, case.D) for case in telling} >= {(256, 512), (8, 64), (65_536, 768)}
    first = {(case.dtype, case.num_bytes > 64_000_000) for case in telling[:3]}
    assert first == {(torch.bfloat16, True), (torch.float32, True), (torch.float32, False)}
    assert grid("cpu", "telling") == grid("cpu", "quick")


def test_the_quick_grid_autotunes_a_case_a_way_and_a_small_one() -> None:
    quick = grid("cuda", "quick")
    found = [case for case in quick if has_autotune(case, "quick")]
    assert sorted(f"{case.N}-{case.way}" for case in found) == [
        "16384-attached", "16384-deferred", "16384-fused", "256-fused",
    ]  # fmt: skip
    assert all(has_autotune(case, "full") for case in grid("cuda", "full"))
    assert not any(has_autotune(case, "telling") for case in grid("cuda", "telling"))


def test_bytes_by_hand() -> None:
    # 2 × 3 elements of 2 bytes: 12 bytes a tensor
    moved = {kind: Case("cpu", 2, 3, torch.bfloat16, kind).num_bytes for kind in KINDS}
    assert moved == {"loss": 36, "forward": 24, "norms": 24, "attached": 60}
    for kind, its in KINDS.items():
        case = Case("cpu", 2, 3, torch.bfloat16, kind)
        assert ROOFLINES[its.roofline].num_bytes(case) == case.num_bytes, kind


@pytest.mark.parametrize("kind", ["loss", "norms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_not_told_apart_by_rounding(kind: str, dtype: torch.dtype) -> None:
    (x,) = make_inputs(Case("cpu", 4096, 64, dtype, kind, K=5), seed=0)
    n_s = x.student.double().norm(dim=1)
    n_t = x.teacher.double() if kind == "norms" else x.teacher.double().norm(dim=1)
    assert (n_s / n_t - 1).abs().min() > 1e-3
    assert 0.3 < (n_s > n_t).double().mean() < 0.7


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its code generation, which takes seconds a case."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compile(*a, **k, backend="eager"))


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("means_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_are_right(kind: str, dtype: torch.dtype, means_dtype: torch.dtype) -> None:
    torch.compiler.reset()
    case = Case("cpu", 24, 40, dtype, kind, K=5, means_dtype=means_dtype)
    workload = make_workload(case)  # checks the peers
    assert not workload.why_not
    assert workload.others.keys() >= {"compile", "eager", "loop", KINDS[kind].roofline}
    check("nd_loss", nd_loss_step(case, "reference"), workload)
    check("forward alone", forward_step(case, "reference"), workload)
    if kind == "attached":
        check("accumulating", accumulating_step(case, "reference"), workload)


@pytest.mark.usefixtures("quick_compile")
def test_check_sees_a_wrong_loss_and_a_wrong_gradient() -> None:
    case = Case("cpu", 8, 16, torch.float32, K=5)
    workload = make_workload(case)
    step = nd_loss_step(case, "reference")

    def wrong_loss(x: Any) -> tuple[torch.Tensor, ...]:
        loss, gradient = step(x)
        return loss * 1.0001, gradient

    def wrong_row(x: Any) -> tuple[torch.Tensor, ...]:
        loss, gradient = step(x)
        gradient[3] *= 1.0001
        return loss, gradient

    for wrong, what in ((wrong_loss, "the loss is off"), (wrong_row, "a row's gradient is off")):
        with pytest.raises(AssertionError, match=what):
            check("wrong", wrong, workload)
        with pytest.raises(AssertionError, match=what):
            add_peer(workload, "wrong", Peer(wrong))


def test_a_peer_that_does_not_run_leaves_its_reason() -> None:
    case = Case("cpu", 8, 16, torch.float32, K=5)
    inputs = make_inputs(case, seed=0)
    zero = torch.zeros(())
    workload = Workload(case, 0, inputs, zero, zero, 0.0)

    def broken(x: Any) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("cannot be captured\nbecause")

    add_peer(workload, "autotune", Peer(broken))
    assert workload.why_not == {"autotune": "RuntimeError: cannot be captured"}
    assert not workload.others
    assert not workload.steps


def test_a_gpu_has_every_peer() -> None:
    small, large = (Case("cuda", N, 8, torch.float32, K=2) for N in (512, 4096))
    found = peers(small, torch.zeros(2, 8))
    assert found.keys() == {*COMPILE_MODES, "eager", "loop"}
    assert {name for name, peer in found.items() if not peer.in_graph} == {
        "compile_graphs", "autotune_graphs", "loop",
    }  # fmt: skip
    assert peers(large, torch.zeros(2, 8)).keys() == {*COMPILE_MODES, "eager"}


def test_rooflines_move_what_they_say() -> None:
    case = Case("cpu", 4, 6, torch.float32, "attached", K=3)
    x = make_inputs(case, seed=1)[0]
    assert x.grad_features is not None
    student, teacher = x.features
    x.out.fill_(torch.nan)
    assert torch.equal(ROOFLINES["add"].step(x)[0], student + teacher)
    assert torch.equal(x.out, student + teacher)
    assert torch.equal(ROOFLINES["copy"].step(x)[0], student)
    torch.testing.assert_close(ROOFLINES["read"].step(x)[0], student.sum() + teacher.sum())
    total, written = ROOFLINES["read_and_add"].step(x)
    torch.testing.assert_close(total, student.sum() + teacher.sum())
    assert torch.equal(written, student + x.grad_features)
    assert list(yardsticks(case, x)) == ["read_and_add"]


def test_eager_times_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Sixteen milliseconds pass between any two."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            called.append("event")

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return 16.0

    called: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    inputs: list[Any] = ["first", "second", "third"]
    steps: dict[str, Any] = dict.fromkeys(("ndfast", "eager"), called.append)
    found = time_eagerly(steps, inputs)
    assert EAGER_CALLS == 8
    for times in found.values():
        assert set(times.gpu_seconds) == {0.002}
        assert len(times.gpu_seconds) == len(times.host_seconds) >= 7
        assert all(0 < seconds < 1 for seconds in times.host_seconds)
    # A call to warm up, eight between the events; the inputs go on where they were.
    of_step = ["first", "event", *("second", "third", "first") * 2, "second", "third", "event"]
    assert called[:22] == of_step * 2
