"""Which backend runs."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import ndfast
from ndfast import dispatch
from ndfast.backends import cuda, native, reference

ARGUMENTS = (torch.randn(2, 3), None, torch.randn(4, 3), torch.tensor([0, 3]))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the backends whose forward ran."""
    names: list[str] = []
    for module in (native, reference):
        forward = module.forward

        def spy(*arguments: object, forward=forward, name=module.__name__) -> object:
            names.append(name.rsplit(".", 1)[1])
            return forward(*arguments)

        monkeypatch.setattr(module, "forward", spy)
    return names


def test_the_argument_wins_then_use_backend_then_the_fastest(ran: list[str]) -> None:
    ndfast.nd_loss(*ARGUMENTS)
    with ndfast.use_backend("reference"):
        ndfast.nd_loss(*ARGUMENTS)
        ndfast.nd_loss(*ARGUMENTS, backend="native")
        with ndfast.use_backend(None):
            ndfast.nd_loss(*ARGUMENTS)
    ndfast.nd_loss(*ARGUMENTS)
    assert ran == ["native", "reference", "native", "native", "native"]


def test_use_backend_as_a_call_stays(ran: list[str]) -> None:
    ndfast.use_backend("reference")
    try:
        ndfast.nd_loss(*ARGUMENTS)
    finally:
        ndfast.use_backend(None)
    assert ran == ["reference"]
    with pytest.raises(ValueError, match="name: 'cuda9000' is no backend"):
        ndfast.use_backend("cuda9000")


def test_use_backend_may_be_entered_again(ran: list[str]) -> None:
    reference_for_a_while = ndfast.use_backend("reference")
    with reference_for_a_while:
        ndfast.nd_loss(*ARGUMENTS)
    with reference_for_a_while:
        ndfast.nd_loss(*ARGUMENTS)
    with reference_for_a_while:
        with reference_for_a_while:
            pass
        ndfast.nd_loss(*ARGUMENTS)
    ndfast.nd_loss(*ARGUMENTS)
    assert ran == ["reference", "reference", "reference", "native"]


def test_one_asked_for_by_name_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._choose.cache_clear()
    monkeypatch.setattr(native, "unusable", lambda device: "it has been taken away")
    try:
        with pytest.raises(RuntimeError, match="'native' cannot run on a cpu tensor: it has been"):
            ndfast.nd_loss(*ARGUMENTS, backend="native")
        assert dispatch.choose(torch.device("cpu"), None) is reference
        assert ndfast.available_backends()["native"] == "it has been taken away"
    finally:
        dispatch._choose.cache_clear()


def test_every_backend_is_listed_and_the_reference_always_runs() -> None:
    backends = ndfast.available_backends()
    assert set(backends) == {"native", "cuda", "triton", "reference"}
    assert backends["reference"] is None


def test_backward_stays_on_the_backend_of_its_forward(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for module in (native, reference):
        monkeypatch.setattr(
            module, "backward", lambda *_, name=module.__name__: called.append(name) or _grads()
        )
    student = ARGUMENTS[0].half().requires_grad_()
    with ndfast.use_backend("reference"):
        loss = ndfast.nd_loss(student, *ARGUMENTS[1:])
    loss.backward()
    assert called == ["ndfast.backends.reference"]


def _grads() -> tuple[torch.Tensor, ...]:
    return torch.zeros(2, 3, dtype=torch.float16), torch.empty(0), torch.empty(0)


def run_python(code: str, **environment: str) -> SimpleNamespace:
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return SimpleNamespace(code=result.returncode, out=result.stdout.strip(), err=result.stderr)


PRINT_CHOICE = (
    "import torch, ndfast.dispatch as d; print(d.choose(torch.device('cpu'), None).__name__)"
)


def test_environment_variables() -> None:
    assert run_python(PRINT_CHOICE, NDFAST_BACKEND="reference").out == "ndfast.backends.reference"
    lower = run_python(
        f"{PRINT_CHOICE}; from ndfast.backends import native; print(native.capability())",
        NDFAST_BACKEND="", NDFAST_CPU_CAPABILITY="portable",
    )  # fmt: skip
    assert lower.out.split() == ["ndfast.backends.native", "portable"]
    wrong = run_python(PRINT_CHOICE, NDFAST_BACKEND="quick")
    assert wrong.code != 0
    assert "NDFAST_BACKEND: 'quick' is no backend" in wrong.err
    wrong = run_python("import ndfast.backends.native", NDFAST_CPU_CAPABILITY="mmx")
    assert "NDFAST_CPU_CAPABILITY: 'mmx' is no instruction set" in wrong.err


def test_a_gpu_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    reason = "the GPU has compute capability 7.5; expected 8.0 or more"
    monkeypatch.setattr(cuda, "missing", None)
    monkeypatch.setattr("ndfast.backends.triton.unusable", lambda device: reason)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    dispatch._choose.cache_clear()
    try:
        assert cuda.unusable(device) == reason
        with pytest.raises(RuntimeError, match=f"'cuda' cannot run on a cuda tensor: {reason}"):
            dispatch.choose(device, "cuda")  # asked for by name
        assert dispatch.choose(device, None) is reference
        dispatch._choose.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        monkeypatch.setattr(cuda, "_why_not_launched", lambda device: None)
        assert dispatch.choose(device, None) is cuda
    finally:
        dispatch._choose.cache_clear()


def test_a_gpu_that_the_library_was_not_compiled_for_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "no kernel image is available for execution on the device"
    device = torch.device("cuda", 0)
    op = SimpleNamespace(why_unusable=lambda index: said)
    monkeypatch.setattr(cuda, "missing", None)
    monkeypatch.setattr(cuda.torch.ops, "ndfast_cuda", op, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert cuda.unusable(device) == f"its kernels cannot be launched there: {said}"
