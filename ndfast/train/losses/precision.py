"""What the losses compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are float64: a loss is not computed in less.

    Autocast leaves log_softmax of bfloat16 logits in bfloat16 on the CPU.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))
