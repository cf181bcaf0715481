"""What holds for the tests on a GPU: where none is, those marked gpu say so."""

from __future__ import annotations

import os

import pytest
import torch

from ndfast.dispatch import choose

# Matrix products need it where only deterministic algorithms are allowed (../conftest.py).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest, gpu: None) -> str:
    """The backends of CUDA tensors, but for the reference."""
    try:
        choose(torch.device("cuda"), request.param)
    except RuntimeError as reason:
        pytest.skip(str(reason))
    return request.param
