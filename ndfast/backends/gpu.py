"""What the backends for CUDA GPUs share."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

_LEAST_CAPABILITY = (8, 0)
_DRIVER = Path("/proc/driver/nvidia/version")


def not_there(device: torch.device) -> str | None:
    """Why tensors on ``device`` are none for a GPU's kernels, None where they are."""
    if device.type == "cuda":
        return None
    gpus = "" if torch.cuda.is_available() else ", and there is no CUDA GPU here"
    return f"its kernels take CUDA tensors{gpus}"


def too_old(device: torch.device) -> str | None:
    """Why the GPU is too old for the kernels, None where it is not."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= _LEAST_CAPABILITY:
        return None
    found, least = (".".join(map(str, c)) for c in (capability, _LEAST_CAPABILITY))
    return f"the GPU has compute capability {found}; expected {least} or more"


def driver_release() -> str | None:
    """The NVIDIA driver's number, "550.54.15"; None where the kernel does not tell."""
    try:
        told = _DRIVER.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(\.\d+)+)\s", told)
    return found[1] if found else None


def sort_by_class(target: Tensor, target_b: Tensor | None, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows in the order of their labels, so that a class's can be added up in a fixed order.

    Args:
        target: class indices [N].
        target_b: the second labels [N] of mixed ones.
        K: classes.

    Returns:
        The labels [N] in their order (mixed ones [2N]); ``order``, where they come from: i for row
        i's first label, N + i for its second; and ``bounds`` [K + 1]: where each class begins among
        them. Labels that are no class stand before the first bound or behind the last.
    """
    labels = target.long() if target_b is None else torch.cat([target.long(), target_b.long()])
    labels, order = torch.sort(labels, stable=True)
    return labels, order, torch.searchsorted(labels, torch.arange(K + 1, device=labels.device))
