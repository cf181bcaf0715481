"""How a kernel is laid out over the GPU: the launch table, and autotuning for who asks for it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import triton
from triton.testing import do_bench

AUTOTUNE = os.environ.get("NDFAST_TRITON_AUTOTUNE") == "1"

timer: Callable[[Callable[[], object]], float] = do_bench

_measured: dict[Hashable, LaunchConfig] = {}


@dataclass(frozen=True)
class LaunchConfig:
    """One kernel's layout.

    Attributes:
        rows: rows of a tile, a power of two.
        block_d: columns of a tile, a power of two; a longer row goes block by block.
        num_warps: warps of a program.
        programs_per_sm: how many programs a streaming multiprocessor gets at most; each takes
            further tiles in turn.
    """

    rows: int
    block_d: int
    num_warps: int
    programs_per_sm: int


@functools.cache
def default_config(D: int, itemsize: int) -> LaunchConfig:
    """The layout for rows of D elements of ``itemsize`` bytes: four 16-byte loads a row and thread.

    A row's own arithmetic is done by every warp that has a part of it, so a row has few; with
    loads of s and t, 16 warps have 64 KiB in flight on a streaming multiprocessor, and registers
    enough. Shorter rows share programs of four warps, two loads a thread: fewer, larger programs
    leave fewer partial sums, and with more ptxas sinks loads behind the first shuffle;
    tests/test_triton_aot.py looks at that.
    """
    elements, row = 64 // itemsize, triton.next_power_of_2(D)
    if row > 8 * 32 * elements:  # more than registers hold: block by block, in tiles of sums
        block_d = 8 * 32 * min(elements // 2, 8)
        return LaunchConfig(rows=1, block_d=block_d, num_warps=8, programs_per_sm=2)
    if row < 16 * elements:
        rows = min(32, 4 * 16 * elements // row)
        return LaunchConfig(rows, row, num_warps=4, programs_per_sm=6)
    num_warps = max(1, row // (32 * elements))
    if num_warps > 1 and itemsize == 2:  # with four, ptxas for sm_100 sinks a load here too
        return LaunchConfig(1, row, 2 * num_warps, programs_per_sm=12 // num_warps)
    return LaunchConfig(1, row, num_warps, programs_per_sm=16 // num_warps)


def candidates(D: int, itemsize: int) -> list[LaunchConfig]:
    """What autotuning tries: the default and its neighbours."""
    default = default_config(D, itemsize)
    configs = [
        default,
        replace(default, num_warps=max(1, default.num_warps // 2)),
        replace(default, num_warps=min(16, default.num_warps * 2)),
        replace(default, rows=max(1, default.rows // 4), num_warps=max(1, default.num_warps // 4)),
        replace(default, programs_per_sm=4 * default.programs_per_sm),
    ]
    return list(dict.fromkeys(configs))


def measured_config(
    key: Hashable, D: int, itemsize: int, launch: Callable[[LaunchConfig], object]
) -> LaunchConfig:
    """The fastest candidate; when ``key`` is new ``launch`` runs each many times, and is timed."""
    if key not in _measured:
        times = {c: timer(functools.partial(launch, c)) for c in candidates(D, itemsize)}
        _measured[key] = min(times, key=times.__getitem__)
    return _measured[key]
