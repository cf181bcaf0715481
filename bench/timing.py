"""How steps are timed: in rounds in which all take turns, and by CUDA graphs on a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch

from bench.cases import Inputs
from bench.steps import Peer, Step

ROUND_SECONDS = 0.005  # a step's share of a round at least, to drown the clock and a GPU's launch
TEST_SECONDS = 1.5  # a test takes about this long, but for the fewest rounds
FEWEST_ROUNDS, MOST_ROUNDS = 7, 50
GRAPH_CALLS = 20  # a CUDA graph holds at least so many
# Few enough launches for a GPU's queue of about a thousand: a full one would make the host wait.
EAGER_CALLS = 8
EAGER_SECONDS = 1.0


def clock() -> float:
    """time.perf_counter, once the GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Timed:
    """A step, ready to be timed.

    Attributes:
        run: makes ``calls`` calls of the step; on a GPU it does not wait for them.
        calls: calls of the step in a run.
        runs: runs in a round; `calibrate` finds it.
        seconds: of one call, an entry a round.
    """

    run: Callable[[], Any]
    calls: int
    runs: int = 1
    seconds: list[float] = field(default_factory=list)

    def calibrate(self) -> float:
        """Warms up, starts afresh, sets ``runs`` and returns the seconds that a round takes."""
        self.seconds = []
        self.run()
        run_seconds = min(self._seconds_of(runs=1) for _ in range(3))
        self.runs = max(1, round(ROUND_SECONDS / run_seconds))
        return self.runs * run_seconds

    def round(self) -> None:
        self.run()  # untimed, so that no step finds caches and allocator as another left them
        self.seconds.append(self._seconds_of(self.runs) / (self.runs * self.calls))

    def _seconds_of(self, runs: int) -> float:
        start = clock()
        for _ in range(runs):
            self.run()
        return clock() - start


def prepare(peer: Peer, inputs: list[Inputs]) -> Timed:
    """On the CPU a run is a call; on a GPU many that rotate through the inputs, in a CUDA graph."""
    if peer.waits or not inputs[0].student.is_cuda:
        return Timed(partial(peer.step, inputs[0]), calls=1)
    if peer.in_graph:
        return _captured(peer.step, inputs)
    turn = cycle(inputs)
    return Timed(partial(_call, peer.step, turn, GRAPH_CALLS), GRAPH_CALLS)


def _call(step: Step, turn: Iterator[Inputs], calls: int) -> None:
    for x in islice(turn, calls):
        step(x)


def _captured(step: Step, inputs: list[Inputs]) -> Timed:
    calls = max(GRAPH_CALLS, len(inputs))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a capture needs a warm-up on a side stream
        step(inputs[0])
    torch.cuda.current_stream().wait_stream(side)
    # Held while the graph is captured: a gradient freed at once would be the next call's buffer,
    # and never leave the L2 cache.
    held: deque[Any] = deque(maxlen=len(inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held.extend(step(x) for x in islice(cycle(inputs), calls))
    return Timed(graph.replay, calls)


def take_turns(benchmark: Any, ours: Timed, others: dict[str, Timed]) -> None:
    """Times ``ours`` with pytest-benchmark and the others between its rounds.

    pytest-benchmark times one test after the other, and on a shared machine the minutes differ more
    than the peers do. So each of its rounds of ours is followed, in the teardown that it does not
    time, by a round of every other step: a ratio is then taken within a round, and the median over
    the rounds.
    """
    a_round = sum(timed.calibrate() for timed in (ours, *others.values()))
    rounds = min(max(int(TEST_SECONDS / (2 * a_round)), FEWEST_ROUNDS), MOST_ROUNDS)

    def rounds_of_the_others() -> None:
        for timed in others.values():
            timed.round()
        ours.run()  # untimed, as in their rounds

    benchmark.pedantic(ours.run, teardown=rounds_of_the_others, rounds=rounds, iterations=ours.runs)
    if benchmark.enabled:
        ours.seconds = [seconds / ours.calls for seconds in benchmark.stats.stats.data]
        for timed in others.values():  # where runs > 1 pytest-benchmark tears down once more
            del timed.seconds[rounds:]


@dataclass(frozen=True)
class EagerTimes:
    """A step as a trainer without CUDA graphs calls it, on a GPU.

    Attributes:
        gpu_seconds: of one call, an entry a round: from event to event around several calls.
        host_seconds: what the host took to issue that call, without waiting for the GPU.
    """

    gpu_seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)


def time_eagerly(steps: dict[str, Step], inputs: list[Inputs]) -> dict[str, EagerTimes]:
    """The steps in turns, in rounds of a few calls each that rotate through the inputs."""
    times = {name: EagerTimes() for name in steps}
    turn = cycle(inputs)

    def a_round() -> float:
        start = clock()
        for name, step in steps.items():
            _call(step, turn, 1)  # untimed, so that no step finds the allocator as another left it
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            host_start = clock()
            before.record()
            _call(step, turn, EAGER_CALLS)
            after.record()
            host_end = time.perf_counter()
            after.synchronize()
            times[name].host_seconds.append((host_end - host_start) / EAGER_CALLS)
            times[name].gpu_seconds.append(1e-3 * before.elapsed_time(after) / EAGER_CALLS)
        return clock() - start

    a_round()
    rounds = min(max(int(EAGER_SECONDS / a_round()), FEWEST_ROUNDS), MOST_ROUNDS)
    for of_step in times.values():  # warm-ups
        of_step.gpu_seconds.clear()
        of_step.host_seconds.clear()
    for _ in range(rounds):
        a_round()
    return times
