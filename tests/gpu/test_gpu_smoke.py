"""`make gpu-smoke`: every family of kernels once on a GPU; and, without one, that none is left out.

The marker `smoke` is also on a CUDA graph of each way and on torch.compile, in test_gpu_streams.py,
and on `ClassMeans` on a GPU, in tests/test_class_means.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_as_defined, worst_error
from emulated_cuda import kernels
from on_gpu import WAYS, student_gradient, to_gpu
from smoke_calls import CALLS, make_case

import ndfast

ROOT = Path(__file__).parents[2]
BACKENDS = ("cuda", "triton")


def check(drawn: dict[str, Any], backend: str, what: Any, on_gpu: bool) -> None:
    """With all gradients against the definition, and the student's alone, as in training."""
    case = make_case(drawn)
    if on_gpu:
        case = to_gpu(case)
    assert_as_defined(case, backend, what)
    alone, among_others = student_gradient(case, backend), case.run(backend)["student"]
    bound = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(case.student.dtype, 1e-5)
    error = worst_error(alone, among_others.double(), None)
    assert error <= bound, f"{what}: the student's gradient alone is off by {error:.2e}"


@pytest.mark.gpu
@pytest.mark.smoke
@pytest.mark.parametrize("name", CALLS)
def test_a_call(name: str, backend: str, seed: int) -> None:
    check(CALLS[name], backend, (seed, name), on_gpu=True)


@pytest.mark.gpu
@pytest.mark.smoke
def test_both_backends_are_there(gpu: None) -> None:
    # Elsewhere one that cannot run is skipped; who has a GPU wants to know.
    reasons = ndfast.available_backends()
    assert {name: reasons[name] for name in ("cuda", "triton")} == {"cuda": None, "triton": None}


def family(kernel: str) -> tuple[str, ...]:
    """A mangled name's kernel, the type of its sums, the type that it reads, whether it mixes."""
    read = "f|13__nv_bfloat16|6__half|NS0_7AnyType"
    names = re.match(rf"_ZN6ndfast4cuda\d+(\w+?_kernel)I([fd])({read})?", kernel)
    assert names is not None, kernel
    return *(name or "" for name in names.groups()), *re.findall(r"Lb([01])E", kernel)


def test_a_familys_name() -> None:
    kernel = "_ZN6ndfast4cuda14forward_kernelIf6__halfS2_Li2ENS0_10BlockGroupIfEES2_Lb1EEEvNS0_16F"
    assert family(kernel) == ("forward_kernel", "f", "6__half", "1")


@pytest.mark.usefixtures("emulated_cuda")
def test_the_calls_launch_every_family_of_cuda(seed: int) -> None:
    take_launched = torch.ops.ndfast_emulator.take_launched
    take_launched()
    for name, drawn in CALLS.items():
        check(drawn, "cuda", (seed, name), on_gpu=False)
    launched = {family(line) for line in take_launched().splitlines()}
    assert {family(kernel) for kernel in kernels()} == launched


def test_the_calls_launch_every_kernel_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := ndfast.available_backends()["triton"]) is not None:
        pytest.skip(reason)
    from ndfast.backends.triton import launcher
    from ndfast.backends.triton.quick_launch import QuickLaunch

    call, launched = QuickLaunch.__call__, []

    def launch(self: QuickLaunch, *arguments: Any, **options: Any) -> None:
        launched.append(self)
        call(self, *arguments, **options)

    monkeypatch.setattr(QuickLaunch, "__call__", launch)
    # Triton makes a kernel anew for every dtype, and cuda's families have them all; this one is
    # what the interpreter has the time for. Its results are tests/test_triton.py's.
    make_case(CALLS["a teacher's norms"]).run("triton")
    wanted = [value for value in vars(launcher).values() if isinstance(value, QuickLaunch)]
    assert len(wanted) >= 2
    assert {*launched} == {*wanted}


def smoke_tests() -> Iterator[str]:
    """The names of all tests that `make gpu-smoke` runs, with their parameters."""
    places = re.findall(r"^GPU_TESTS := (.*)", (ROOT / "Makefile").read_text(), flags=re.M)[0]
    command = [sys.executable, "-m", "pytest", *places.split(), "-m", "smoke", "--collect-only"]
    said = subprocess.run([*command, "-q"], cwd=ROOT, capture_output=True, text=True, check=True)
    yield from re.findall(r"^tests/.*::(.*)", said.stdout, flags=re.M)


def test_what_is_no_kernel_is_smoked_too() -> None:
    found = {*smoke_tests()}
    assert {f"test_a_call[{backend}-{name}]" for backend in BACKENDS for name in CALLS} <= found
    expected = {
        f"test_a_replay_equals_the_eager_call[{backend}-{way}]"
        for backend, way in product(BACKENDS, WAYS)
    }
    expected |= {f"test_compiled_with_cuda_graphs[{backend}-False]" for backend in BACKENDS}
    assert expected <= found
    assert "test_update_never_waits_for_the_gpu" in found
