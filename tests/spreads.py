"""How the labels of a batch may be spread over classes, for the gradient of class means.

The GPU's backends cut a class of 512 rows or more in parts of 256, the last with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from cases import Case
from torch import Tensor

import ndfast

# How many rows each class has, and how many are ignored.
SPREADS = {
    "fewer rows than two parts": ([511], 0),
    "two parts in all, none cut": ([511, 1], 0),
    "all in one class": ([0, 0, 1100, 0], 0),
    "all in the first class": ([1100, 0], 0),
    "all in the last class": ([0, 1100], 0),
    "one class of exactly two parts": ([512], 0),
    "at the parts' bounds": ([256, 512, 256], 0),
    "one row off the parts' bounds": ([257, 511, 513, 255], 0),
    "one that begins in the middle of a part": ([300, 900, 300], 0),
    "cut ones side by side": ([255, 513, 512, 0, 1023, 300], 0),
    "ignored ones before and behind": ([0, 700, 3], 900),
    "all ignored": ([0, 0, 0], 700),
    "more classes than rows": ([1] * 40 + [0] * 600 + [520] + [0] * 40, 20),
}


def with_rows_of_class(case: Case, counts: Sequence[int], ignore_index: int) -> Case:
    """The case with ``counts[k]`` rows of class k in a random order, and its other rows ignored.

    Mixed labels are both so, each in an order of its own.
    """

    def labels() -> Tensor:
        N = len(case.student)
        labels = torch.full((N,), ignore_index)
        labels[: sum(counts)] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return labels[torch.randperm(N)]

    target = case.target
    if isinstance(target, ndfast.Mix):
        target = replace(target, target_a=labels(), target_b=labels())
    else:
        target = labels()
    return replace(case, target=target, options=case.options | {"ignore_index": ignore_index})
