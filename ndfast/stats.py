"""NDStats: how far the students' features have come, from what the loss has already summed up."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ndfast.arguments import Rows
from ndfast.backends.reference import rows_that_count


class NDStats(NamedTuple):
    """Means over the rows that are not ignored, not weighted; NaN where there is no such row.

    Each is a 0-dim tensor on the features' device, in the dtype of the loss, outside autograd;
    nothing waits for it until its value is asked for.
    """

    cosine: Tensor
    """Mean cosine of the student's feature and its class mean: the direction's part, at most 1."""
    norm_ratio: Tensor
    """Mean ‖s‖ / ‖t‖; NaN without a teacher."""
    longer: Tensor
    """Share of rows with ‖s‖ ≥ ‖t‖, whose norm the loss no longer pulls; NaN without a teacher."""


def stats_of(rows: Rows, measures: Tensor) -> NDStats:
    """The means of the rows' ``measures`` [3, N]: ‖s‖, ‖t‖ and p.

    A handful of small kernels over N numbers; no row is read again.
    """
    n_s, n_t, p = measures.unbind()
    if rows.teacher is None:
        n_t = torch.full_like(n_t, torch.nan)
    norm_ratio = n_s / n_t.clamp_min(rows.eps)
    longer = torch.where(norm_ratio.isnan(), torch.nan, (n_s >= n_t).to(n_s.dtype))
    each = torch.stack([p / n_s.clamp_min(rows.eps), norm_ratio, longer])
    counts = rows_that_count(rows.target, rows.target_b, rows.ignore_index)
    if counts is None:
        return NDStats(*each.mean(dim=1).unbind())
    total = torch.where(counts, each, 0).sum(dim=1)
    return NDStats(*(total / counts.sum()).unbind())
