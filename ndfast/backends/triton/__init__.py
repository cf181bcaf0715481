"""Triton kernels on a CUDA device; with TRITON_INTERPRET=1, Triton's interpreter on any tensor.

- launcher.py: what `ndfast.backends` asks of a backend: outputs, arguments, launches.
- launch_table.py: how many rows, columns and warps a program gets.
- forward_kernel.py, backward_kernels.py: the kernels; tiles.py: how they read and write rows.
"""

from __future__ import annotations

import torch

try:
    import triton
except ImportError as error:
    _no_triton: str | None = f"triton cannot be imported: {error}"
else:
    from ndfast.backends.triton.launcher import backward, finish_gradient_, forward

    _no_triton = None
    _interpreted = triton.knobs.runtime.interpret  # as Triton read it when it saw the kernels

__all__ = ["backward", "finish_gradient_", "forward", "unusable"]

_LEAST_CAPABILITY = (8, 0)


def unusable(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``, None where they can."""
    if _no_triton is not None:
        return _no_triton
    if _interpreted:
        return None
    if device.type != "cuda":
        return "Triton compiles for CUDA devices; set TRITON_INTERPRET=1 to interpret its kernels"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        found, least = (".".join(map(str, c)) for c in (capability, _LEAST_CAPABILITY))
        return f"the GPU has compute capability {found}; it takes {least} or more"
    return None
