"""What the backends for CUDA GPUs share."""

from __future__ import annotations

import re
from pathlib import Path

import torch

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
