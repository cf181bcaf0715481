"""How the labels of a batch may be spread over classes, for the gradient of class means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from cases import Case
from torch import Tensor

import ndfast

# How many rows each class has, and how many are ignored.
SPREADS = {
    "all in one class": ([0, 0, 300, 0], 0),
    "one class": ([70], 0),
    "classes of all sizes": ([60, 150, 0, 20, 1, 10], 0),
    "ignored ones before and behind": ([0, 100, 3], 200),
    "all ignored": ([0, 0, 0], 70),
    "more classes than rows": ([1] * 40 + [0] * 600 + [52] + [0] * 40, 20),
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
