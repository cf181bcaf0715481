"""What a run happened on: versions, devices, backends."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ndfast.dispatch import available_backends


def describe_environment() -> dict[str, Any]:
    """Returns versions by name (None where a package is missing), devices, threads and backends."""
    versions = {name: _version(name) for name in ("ndfast", "torch", "triton", "numpy")}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backends": available_backends(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
