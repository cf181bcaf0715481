"""Names that PyTorch does not promise, and what is taken where a later one lacks them.

torch has no upper bound here. A question that cannot be asked is answered so that the loss goes the
way that is right whatever the answer: slower, never a wrong number.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _named(path: str, without: Any) -> Any:
    """What torch has by that path of names, else ``without``."""
    try:
        return attrgetter(path)(torch)
    except AttributeError:
        return without


def _may_be_transforming() -> bool:
    # torch.compile and torch.jit.trace take the ops themselves, not the Function for torch.func.
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


# Whether a transform of torch.func is at work.
is_transforming = _named("_C._are_functorch_transforms_active", _may_be_transforming)
# Whether torch.jit.trace is.
is_tracing = _named("_C._is_tracing", torch.jit.is_tracing)
# Of a tensor, whether is_grads_batched has made it.
is_batched = _named("_C._functorch.is_legacy_batchedtensor", lambda _: True)
num_dispatch_modes = _named("_C._len_torch_dispatch_stack", lambda: 1)
# Those that are set, or None; False: they may be asked for while torch.compile traces as well.
hooks_on_saved_tensors = _named(
    "_C._autograd._top_saved_tensors_default_hooks", lambda ignore_is_tracing: True
)


def add_by_sorted_labels(sums: Tensor, labels: Tensor, rows: Tensor) -> None:
    """In place, on a GPU in a fixed order; labels are rows of ``sums``.

    index_put_ is the same, but looks at the labels first, for which some releases of torch have
    the host wait.
    """
    put = _named("_index_put_impl_", None)
    if put is None:
        sums.index_put_((labels,), rows, accumulate=True)
    else:
        put(sums, [labels], rows, accumulate=True, unsafe=True)


def may_have_tangents() -> bool:
    """Whether forward-mode AD is at work."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def apply_of(function: Any) -> Any:
    """The ``apply`` of an autograd Function without its look for what torch.func left behind.

    3 of 58 µs of a small batch's forward and backward on a CPU.
    """
    return getattr(super(torch.autograd.Function, function), "apply", function.apply)


def without_frame(op: Any) -> Any:
    """A custom op's own function, to be called without a Python frame around it."""
    return getattr(op, "_op", op)
