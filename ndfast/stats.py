"""NDStats: how far the students' features have come, from what the loss has already summed up."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ndfast.arguments import Rows


class NDStats(NamedTuple):
    """Means over the rows that are not ignored, not weighted; NaN where there is no such row.

    Each is a 0-dim tensor on the features' device, in the dtype of the loss, outside autograd;
    nothing waits for it until its value is asked for.
    """

    cosine: Tensor
    """Mean cosine of the student's feature and its class mean: the direction's part, at most 1."""
    norm_ratio: Tensor
    """Mean ‖s‖ / ‖t‖; NaN without a teacher."""
    fraction_student_longer: Tensor
    """Share of rows with ‖s‖ ≥ ‖t‖, whose norm the loss no longer pulls; NaN without a teacher."""

    @property
    def longer(self) -> Tensor:
        """`fraction_student_longer` by its name of before 0.1.0; it goes with the next version."""
        warnings.warn(
            "NDStats.longer: is now fraction_student_longer", DeprecationWarning, stacklevel=2
        )
        return self.fraction_student_longer


def stats_of(rows: Rows, measures: Tensor) -> NDStats:
    """The means of `ndfast.backends.reference.row_measures` [4, N]; ignored rows are zeros."""
    sums = measures.sum(dim=1)
    cosine, norm_ratio, longer = (sums[:3] / sums[3]).unbind()
    if rows.teacher is None:
        norm_ratio = longer = torch.full_like(cosine, torch.nan)
    return NDStats(cosine, norm_ratio, longer)
