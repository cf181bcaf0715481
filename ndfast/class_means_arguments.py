"""What the arguments of `ndfast.ClassMeans` may be."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

_LABELS = frozenset((torch.int64, torch.int32, torch.uint8))


def check_int(name: str, value: object, least: int | None = None) -> None:
    """Raises TypeError for what is no int, ValueError for one below ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {type(value).__name__}; expected an int")
    if least is not None and int(value) < least:
        raise ValueError(f"{name}: got {value}; expected {least} or more")


def check_count(expected_count: int, rows: int, ignored: int) -> None:
    """Raises ValueError if the rows that have a class are not as many as expected."""
    if rows == expected_count:
        return
    also = f" and {ignored} ignored" if ignored else ""
    if rows < expected_count:
        why = "some are missing, as by a loader with drop_last, or before all_reduce"
    else:
        why = (
            "some came twice, as by a sampler that pads (DistributedSampler, Accelerate's), by a "
            "second pass, or where every process took the whole data set"
        )
    raise ValueError(f"expected_count: got {rows} rows{also}; expected {expected_count}: {why}")


def flatten_batch(features: Tensor, labels: Tensor, D: int) -> Tensor:
    """Returns the features as [N, D]; raises TypeError or ValueError for what is no batch."""
    for name, value in (("features", features), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}; expected a torch.Tensor")
    if not features.is_floating_point():
        raise TypeError(f"features: got dtype {features.dtype}; expected a floating-point dtype")
    if labels.dtype not in _LABELS:
        raise TypeError(f"labels: got dtype {labels.dtype}; expected int64, int32 or uint8")
    if labels.dim() != 1:
        raise ValueError(f"labels: got shape {list(labels.shape)}; expected [N]")
    N = len(labels)
    if features.shape not in ((N, D), (N, D, 1, 1)):
        raise ValueError(
            f"features: got shape {list(features.shape)}; for {N} labels expected "
            f"[{N}, {D}] or [{N}, {D}, 1, 1]"
        )
    return features.reshape(N, D)
