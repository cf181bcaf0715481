"""Triton kernels on a CUDA device; with TRITON_INTERPRET=1, Triton's interpreter on any tensor.

- launcher.py: what `ndfast.backends` asks of a backend: outputs, arguments, launches.
- launch_table.py: how many rows, columns and warps a program gets.
- quick_launch.py: launches with less work on the host than Triton's JIT.
- workspace.py: what the programs of a launch share to add the loss up.
- forward_kernel.py, backward_kernel.py: the kernels; tiles.py: how they read and write rows.
"""

from __future__ import annotations

import torch

from ndfast.backends.gpu import not_there, too_old

try:
    import triton
except ImportError as error:
    _no_triton: str | None = f"triton cannot be imported: {error}"
else:
    from ndfast.backends.triton.launcher import backward, finish_gradient_, forward

    _no_triton = None
    _interpreted = triton.knobs.runtime.interpret  # as Triton read it when it saw the kernels

__all__ = ["backward", "finish_gradient_", "forward", "is_unscaled", "unusable"]

is_unscaled = False


def unusable(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``, None where they can."""
    if _no_triton is not None:
        return _no_triton
    if _interpreted:
        return None
    if reason := not_there(device):
        return f"{reason}; set TRITON_INTERPRET=1 to interpret them"
    return too_old(device)
