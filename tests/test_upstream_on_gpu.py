"""How a GPU's upstream gradient is learned without waiting for it; on CPU tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ndfast
from ndfast import upstream
from ndfast.upstream import UpstreamOnGPU

SCALE = 2.0**16
LONGEST_WAIT = 31  # backwards between two copies

DTYPES = [torch.float16, torch.float32, torch.float64]
Step = Callable[[float], float | None]


@pytest.fixture(params=["cuda", "triton", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Those that run on a GPU."""
    if request.param == "cuda":
        request.getfixturevalue("emulated_cuda")
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> UpstreamOnGPU:
    """Of the losses of a dtype, as if their tensors were on a GPU."""
    of_gpu = UpstreamOnGPU(upstream.BY_DTYPE[request.param].at_first)
    monkeypatch.setitem(upstream.BY_DTYPE, request.param, of_gpu)
    return of_gpu


def forward_of(
    known: UpstreamOnGPU, backend: str = "reference", *labels: int
) -> Callable[[], Tensor]:
    """That of a step of training."""
    (dtype,) = (dtype for dtype, of in upstream.BY_DTYPE.items() if of is known)
    target = torch.tensor(labels or [0, 2, 1, 1])
    student = torch.randn(len(target), 8).to(dtype).requires_grad_()
    class_means = torch.randn(3, 8)
    return lambda: ndfast.nd_loss(student, None, class_means, target, backend=backend)


def step_of(known: UpstreamOnGPU, backend: str = "reference", *labels: int) -> Step:
    """A step of training: what its forward has expected, given what its backward brings."""
    forward = forward_of(known, backend, *labels)

    def run(comes: float) -> float | None:
        loss = forward()
        expected = known.expected
        loss.backward(torch.tensor(comes).to(loss))
        return expected

    return run


def test_two_are_copied_at_first(known: UpstreamOnGPU, backend: str) -> None:
    run = step_of(known, backend)
    assert [run(SCALE) for _ in range(4)] == [known.at_first] * 2 + [SCALE] * 2


def test_then_one_now_and_then(known: UpstreamOnGPU) -> None:
    run = step_of(known)
    # Of the first, the second and the fourth backward: that one was expected.
    assert [run(SCALE) for _ in range(4)][-1] == SCALE
    # The next is a surprise, and the one after it is copied too.
    expected = [run(3.0) for _ in range(LONGEST_WAIT + 3)]
    assert expected == [SCALE] * (LONGEST_WAIT + 2) + [3.0]


def test_what_changes_from_step_to_step_waits_and_is_copied_less(
    known: UpstreamOnGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.expected = 0.5
    run = step_of(known)
    copied = []
    monkeypatch.setattr(upstream.saved, "scale", lambda ctx: copied.append(comes) or torch.ones(()))
    expected = []
    for comes in range(1, 130):
        expected.append(run(float(comes)))
    assert expected == [0.5] * 2 + [None] * 127
    assert copied == [1, 2, 4, 8, 16, 32, 64, 96, 128]


def test_one_that_comes_once_is_not_expected(known: UpstreamOnGPU) -> None:
    run = step_of(known)
    known.expected = 0.5
    expected = [run(comes) for comes in (SCALE, 0.5, SCALE, 0.5)]
    assert expected == [0.5] * 4


@pytest.mark.parametrize("comes", [math.nan, math.inf, 0.0, -0.0])
def test_some_are_never_expected(comes: float, known: UpstreamOnGPU) -> None:
    run = step_of(known)
    assert [run(comes) for _ in range(4)] == [known.at_first] * 2 + [None] * 2
    assert [run(SCALE) for _ in range(20)][-1] == SCALE


def test_the_denominator_of_the_mean_is_part_of_it(known: UpstreamOnGPU, backend: str) -> None:
    run = step_of(known, backend, 0, -100, 1, -100)
    # Two of four rows count: kernels divide by four in forward. The reference counts first.
    rest = 1.0 if backend == "reference" else 2.0
    assert [run(8.0) for _ in range(3)] == [known.at_first] * 2 + [8 * rest]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Copies that have not arrived: where to, and what."""
    copies = []
    copy_ = Tensor.copy_

    def copy_later_(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            return copy_(to, source)
        copies.append((to, source))
        return to

    monkeypatch.setattr(Tensor, "copy_", copy_later_)
    return copies


@pytest.mark.parametrize("first", [0, 1])
def test_a_copy_on_its_way_is_not_waited_for(
    known: UpstreamOnGPU, slow: list[tuple[Tensor, Tensor]], first: int
) -> None:
    run = step_of(known)

    def arrives() -> None:
        to, source = slow.pop(first if len(slow) == 2 else 0)
        to.copy_(source)

    assert [run(SCALE) for _ in range(100)] == [known.at_first] * 100
    assert len(slow) == 2  # of the first backward: no other begins meanwhile
    arrives()
    run(SCALE)
    assert len(slow) == 1
    arrives()
    run(SCALE)
    assert len(slow) == 2  # it has come once, so the next is copied
    assert known.expected == known.at_first
    arrives(), arrives()
    assert run(SCALE) == SCALE


def test_forward_may_be_older_than_what_is_known(known: UpstreamOnGPU) -> None:
    forward = forward_of(known)
    known.expected = 3.0
    losses = forward(), forward()
    known.expected = 4.0
    for loss in losses:  # what their forwards expected: no surprise
        (3.0 * loss).backward()
        known.catch_up()
    assert known.expected == 4.0


def test_a_backward_of_any_mode_may_be_the_first(known: UpstreamOnGPU) -> None:
    run, loss = step_of(known), forward_of(known)()
    with torch.inference_mode():
        loss.backward(torch.tensor(SCALE).to(loss))
    assert [run(SCALE) for _ in range(2)] == [known.at_first, SCALE]


def test_captures_are_those_of_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert upstream._is_captured(OnGPU())
    assert not upstream._is_captured(torch.zeros(()))


def test_other_devices_are_not_looked_at() -> None:
    known = upstream.of(torch.empty(4, 8, device="meta"))
    assert known.look(None, torch.empty((), device="meta"), 1.0) is None  # it would need a context
    assert not known.is_behind


def test_a_cuda_graph_keeps_to_what_is_expected_but_for_a_scale(
    known: UpstreamOnGPU, written_for: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = step_of(known)
    for _ in range(3):
        run(SCALE)
    monkeypatch.setattr(upstream, "_is_captured", lambda tensor: True)
    written_for.clear()
    for _ in range(2 * LONGEST_WAIT):  # nothing is learned there
        assert run(3.0) == SCALE
    is_float16 = known is upstream.BY_DTYPE[torch.float16]
    assert {*written_for} == {None if is_float16 else SCALE}


def test_gpus_and_dtypes_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "ON_GPUS", {})
    students = [
        torch.empty(4, 8, dtype=dtype, device=device)
        for dtype in DTYPES
        for device in ("cpu", "meta")
    ]
    known = [upstream.of(student) for student in students]
    assert len({*map(id, known)}) == len(students)
    assert known == [upstream.of(student) for student in students]
    assert [type(of) for of in known[:2]] == [upstream.Upstream, UpstreamOnGPU]
    assert [of.at_first for of in known] == [None, None, 1.0, 1.0, 1.0, 1.0]
