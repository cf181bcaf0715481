"""Which backend runs."""

from __future__ import annotations

import json
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


# Importing torch is most of what a process takes: each begins as a copy of one that has it.
PROCESSES = """
import json, os, sys, torch
for code, environment in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ.update(environment)
        exec(code, {})
        sys.exit()
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print(code, end="\\0", flush=True)
    print(end="\\0", file=sys.stderr, flush=True)
"""


def run_python(*programs: tuple[str, dict[str, str]]) -> list[tuple[list[str], str]]:
    """Of each program, in its environment, the words that it prints and its exit code; stderr."""
    command = [sys.executable, "-c", PROCESSES, json.dumps(programs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outputs, errors = (text.split("\0")[:-1] for text in (done.stdout, done.stderr))
    return [(out.split(), error) for out, error in zip(outputs, errors, strict=True)]


PRINT_CHOICE = (
    "import torch, ndfast.dispatch as d; print(d.choose(torch.device('cpu'), None).__name__)"
)


def test_environment_variables() -> None:
    by_name, lower, no_backend, no_set = run_python(
        (PRINT_CHOICE, {"NDFAST_BACKEND": "reference"}),
        (
            f"{PRINT_CHOICE}; from ndfast.backends import native; print(native.capability())",
            {"NDFAST_BACKEND": "", "NDFAST_CPU_CAPABILITY": "portable"},
        ),
        (PRINT_CHOICE, {"NDFAST_BACKEND": "quick"}),
        ("import ndfast.backends.native", {"NDFAST_CPU_CAPABILITY": "mmx"}),
    )
    assert by_name[0] == ["ndfast.backends.reference", "0"], by_name[1]
    assert lower[0] == ["ndfast.backends.native", "portable", "0"], lower[1]
    assert no_backend[0] == ["1"]
    assert "NDFAST_BACKEND: 'quick' is no backend" in no_backend[1]
    assert no_set[0] == ["1"]
    assert "NDFAST_CPU_CAPABILITY: 'mmx' is no instruction set" in no_set[1]


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
