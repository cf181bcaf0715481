"""Whether a case's time is normal, in words; arithmetic alone, needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.cells import dtypes, figure

# Up to so many times what memory needs is normal. A shared machine's speed moves by as much.
NORMAL = 2.0
# float16's gradient comes after the forward on a GPU, which reads the student a second time: four
# tensors move, where three have to.
READS_TWICE = 4 / 3
IN_CACHES = 0.9  # below so many times, the bytes cannot all have come from memory


@dataclass(frozen=True)
class Rule:
    """What plain work takes: t0 + bytes / bandwidth.

    Attributes:
        t0_us: microseconds, what a call takes without any bytes.
        gb_s: 10⁹ bytes a second.
    """

    t0_us: float
    gb_s: float

    def moving_us(self, num_bytes: int) -> float:
        """Microseconds that so many bytes take by themselves."""
        return 1e-3 * num_bytes / self.gb_s

    def us(self, num_bytes: int) -> float:
        """Microseconds of a call that moves so many bytes."""
        return self.t0_us + self.moving_us(num_bytes)


def fit(times: Sequence[Sequence[float]]) -> Rule:
    """The line with the least sum of squared errors, each relative to its time.

    With absolute errors the largest size would have all the say, and t0 could be anything.

    Args:
        times: pairs of bytes and microseconds, of two different sizes at least; more bytes take
            longer.
    """
    weights = [1 / us**2 for _, us in times]
    mean_bytes, mean_us = (
        sum(w * pair[i] for w, pair in zip(weights, times, strict=True)) / sum(weights)
        for i in (0, 1)
    )
    off = [(num_bytes - mean_bytes, us - mean_us) for num_bytes, us in times]
    slope = sum(w * b * us for w, (b, us) in zip(weights, off, strict=True)) / sum(
        w * b * b for w, (b, _) in zip(weights, off, strict=True)
    )
    return Rule(max(0.0, mean_us - slope * mean_bytes), 1e-3 / slope)


def verdict(us: float, call_us: float, num_bytes: int, rule: Rule, normal: float = NORMAL) -> str:
    """One sentence.

    Args:
        us: microseconds of the case.
        call_us: microseconds of the same call with next to nothing to do.
        num_bytes: bytes that have to move.
        rule: of the same machine and dtype.
        normal: how many times what memory needs is normal, beside the call's own time.
    """
    if call_us > us / 2:
        return (
            "This batch is small: most of the time is the call itself, which takes "
            f"{figure(call_us)} µs where there is next to nothing to do."
        )
    times = us / rule.us(num_bytes)
    measured = f"{times:.2f} times what memory needs for these bytes"
    if times > normal and us > call_us + normal * rule.moving_us(num_bytes):
        return (
            f"Slower than expected: {measured}, where up to {normal:.3g} times are normal; see "
            "docs/performance.md."
        )
    if times > normal:
        return (
            f"Normal: {measured}, and the call itself takes {figure(call_us)} of the "
            f"{figure(us)} µs."
        )
    if times < IN_CACHES:
        return f"Normal: {measured}, of which the caches keep a part."
    return f"Normal: {measured}."


def paragraph(r: dict[str, Any]) -> str:
    """A record with its ``memory``, as `bench.memory.figures` has it, in plain words."""
    adds, us, num_bytes = r["memory"]["adds"], r["median_us"], r["bytes"]
    rule = fit(adds)
    sizes = [num_bytes for num_bytes, _ in adds]
    graphs = ""
    if r["eager_us"] is not None:
        graphs = f" in CUDA graphs (called one by one: {figure(r['eager_us'])} µs)"
    normal = NORMAL * (READS_TWICE if r["way"] == "deferred" else 1)
    return (
        f"{r['gpu'] or 'CPU'}, {r['N']}×{r['D']}, K = {r['K']}, {dtypes(r)}, {r['backend']}: "
        f"{amount(num_bytes)} move in {figure(us)} µs{graphs}, {figure(r['GB/s'])} GB/s. "
        f"torch.add of the same bytes takes {1 / r['ratio_to_roofline']:.0%} of that time. "
        f"Memory needs {figure(rule.us(num_bytes))} µs for them: {figure(rule.t0_us)} µs + bytes / "
        f"({figure(rule.gb_s)} GB/s), by torch.add from {amount(min(sizes))} to "
        f"{amount(max(sizes))} in the same run. "
        + verdict(us, r["memory"]["call_us"], num_bytes, rule, normal)
    )


def paragraphs(records: list[dict[str, Any]]) -> list[str]:
    """One for each record with ``memory``.

    The reference is left out where another backend has the case: it is there to be read, not to be
    fast.
    """
    others = {r["case"] for r in records if r["backend"] != "reference"}
    return [
        paragraph(r)
        for r in records
        if "memory" in r and not (r["backend"] == "reference" and r["case"] in others)
    ]


def amount(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{figure(num_bytes / size)} {unit}"
    return f"{figure(num_bytes)} bytes"
