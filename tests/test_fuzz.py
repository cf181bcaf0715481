"""Random calls with every option, on every backend that runs here, against the definition.

NDFAST_FUZZ_CASES=1000000 is the long form. Hypothesis shrinks a call that fails and keeps it in
.hypothesis, so that the next run begins with it; what it prints becomes an @example of its test.
"""

from __future__ import annotations

import os

import pytest
import torch
from expected_results import Definition
from fuzzing import Call, calls
from hypothesis import HealthCheck, given, settings

from ndfast.backends import native

CASES = int(os.environ.get("NDFAST_FUZZ_CASES", "10000"))
PER_ROUND = 2_000  # what hypothesis remembers of a round grows with it


def fuzz(share: float) -> settings:
    """So many of CASES in all, in rounds."""
    cases = max(1, round(min(CASES, PER_ROUND) * share))
    return settings(
        max_examples=cases,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


rounds = pytest.mark.parametrize(
    "part",
    [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, CASES // PER_ROUND))],
)


@rounds
@fuzz(1)
@given(call=calls())
def test_native_and_reference(part: int, call: Call) -> None:
    definition = Definition(call)
    definition.check("reference", "reference")
    capabilities = native.capabilities()
    try:
        for capability in capabilities:
            native.set_capability(capability)
            definition.check("native", capability)
    finally:
        for highest in capabilities[:1]:
            native.set_capability(highest)


@rounds
@fuzz(0.03)
@given(call=calls())
def test_cuda_kernels_on_the_cpu(part: int, emulated_cuda: None, call: Call) -> None:
    Definition(call).check("cuda", "cuda")


@rounds
@fuzz(0.005)
@given(call=calls())
def test_cuda_kernels_as_nvcc_made_them(part: int, cuda_in_ptx: None, call: Call) -> None:
    Definition(call).check("cuda", "PTX")


@pytest.fixture
def interpreted() -> None:
    """Triton's kernels on CPU tensors."""
    backend = pytest.importorskip("ndfast.backends.triton", reason="needs triton")
    reason = backend.unusable(torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)


# Not bfloat16, which the interpreter cuts off where a GPU rounds.
@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")
@rounds
@fuzz(0.001)
@given(call=calls(dtypes=(torch.float32, torch.float64, torch.float16)))
def test_triton_kernels_interpreted(part: int, interpreted: None, call: Call) -> None:
    Definition(call).check("triton", "triton")
