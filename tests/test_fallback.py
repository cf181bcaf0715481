"""What is said where something slower runs than was installed."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

import ndfast
from ndfast import dispatch
from ndfast.backends import cuda, native, reference, triton

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NO_TRITON = "triton cannot be imported: No module named 'triton'"
NO_KERNELS = "the compiled library has no CUDA part"
NO_IMAGE = "no kernel image is available for execution on the device"


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As one in which nothing has been chosen and nothing has been said."""
    monkeypatch.setattr(dispatch, "_said", set())
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


Machine = Callable[..., None]


@pytest.fixture
def machine(fresh_process: None, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets up a machine with a GPU, whose library has CUDA kernels."""

    def set_up(
        of_library: int = 13000,
        of_driver: int = 13000,
        missing: str | None = None,
        installed: bool = True,
        no_triton: str | None = None,
        not_launched: str = "",
    ) -> None:
        monkeypatch.setattr(cuda, "missing", missing)
        monkeypatch.setattr(cuda, "installed", installed)
        monkeypatch.setattr(cuda, "_cuda", of_library)
        monkeypatch.setattr(cuda, "_least_driver", {12: 525, 13: 580}.get(of_library // 1000, 0))
        monkeypatch.setattr(cuda, "_driver_cuda", of_driver)
        monkeypatch.setattr(cuda.gpu, "driver_release", lambda: "550.54.15")
        ops = SimpleNamespace(why_unusable=lambda index: not_launched)
        monkeypatch.setattr(torch.ops, "ndfast_cuda", ops, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        monkeypatch.setattr(triton, "unusable", lambda device: no_triton)

    return set_up


def chosen(device: torch.device, name: str | None = None) -> tuple[str, list[str]]:
    """The backend, and what is said, even to who wants to hear everything."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        backend = dispatch.choose(device, name)
    return backend.__name__.removeprefix("ndfast.backends."), [str(w.message) for w in said]


def test_an_old_driver_is_named_once(machine: Machine) -> None:
    machine(of_library=13000, of_driver=12040)
    name, said = chosen(GPU)
    assert name == "triton"
    assert said == [
        "nd_loss: backend 'triton' runs on cuda tensors. 'cuda' cannot: got NVIDIA driver "
        "550.54.15 (CUDA 12.4); expected 580 or later, for its kernels were built with CUDA 13.0: "
        "update the driver, or build ndfast by an nvcc of CUDA 12. NDFAST_BACKEND=triton or "
        "ndfast.use_backend('triton') chooses it without this warning"
    ]
    for device in (GPU, torch.device("cuda", 1), torch.device("cuda")):
        assert chosen(device) == ("triton", [])
    dispatch._choose.cache_clear()
    assert chosen(GPU) == ("triton", [])


def test_who_asks_by_name_is_not_warned(machine: Machine) -> None:
    machine(of_library=13000, of_driver=12040)
    assert chosen(GPU, "triton") == ("triton", [])
    with ndfast.use_backend("reference"):
        assert chosen(GPU) == ("reference", [])
    with pytest.raises(RuntimeError, match=r"'cuda' cannot run .*got NVIDIA driver 550\.54\.15 "):
        dispatch.choose(GPU, "cuda")
    assert len(chosen(GPU)[1]) == 1  # the default order has not spoken yet


@pytest.mark.parametrize(
    ("of_library", "of_driver", "needs"),
    [
        (13000, 12090, "580 or later"),
        (13020, 12000, "580 or later"),
        (12080, 11080, "525 or later"),
        (14000, 13010, "a later one"),  # of which nothing is known yet
        (13020, 13000, None),  # any minor version serves
        (12080, 12000, None),
        (12080, 13000, None),
        (12080, 0, None),  # unknown: the runtime is asked
    ],
)
def test_which_drivers_are_too_old(
    of_library: int, of_driver: int, needs: str | None, machine: Machine
) -> None:
    machine(of_library, of_driver)
    name, said = chosen(GPU)
    assert name == ("triton" if needs else "cuda")
    assert len(said) == (1 if needs else 0)
    if needs:
        assert f"expected {needs}, " in said[0]


def test_whatever_else_keeps_the_kernels_from_running_is_said(machine: Machine) -> None:
    machine(not_launched=NO_IMAGE)
    name, (said,) = chosen(GPU)
    assert name == "triton"
    assert f"'cuda' cannot: its kernels cannot be launched there: {NO_IMAGE}. " in said


def test_a_library_that_does_not_load_is_no_choice(machine: Machine) -> None:
    machine(missing="the compiled library does not load (undefined symbol)", installed=True)
    name, (said,) = chosen(GPU)
    assert name == "triton"
    assert "'cuda' cannot: the compiled library does not load (undefined symbol)" in said


def test_triton_beside_a_library_without_cuda_kernels_is_a_choice(machine: Machine) -> None:
    machine(missing=NO_KERNELS, installed=False)
    assert chosen(GPU) == ("triton", [])


@pytest.mark.parametrize("installed", [False, True])
def test_the_reference_on_a_gpu_is_never_silent(installed: bool, machine: Machine) -> None:
    machine(
        missing=None if installed else NO_KERNELS,
        installed=installed,
        of_driver=12040,
        no_triton=NO_TRITON,
    )
    name, (said,) = chosen(GPU)
    assert name == "reference"
    assert "'reference' runs on cuda tensors, several times slower" in said
    assert "'cuda' cannot: " + ("got NVIDIA driver" if installed else NO_KERNELS) in said
    assert f"; 'triton' cannot: {NO_TRITON}. NDFAST_BACKEND=reference" in said


def test_the_fastest_and_other_devices_say_nothing(machine: Machine) -> None:
    machine()
    assert chosen(GPU) == ("cuda", [])
    assert chosen(CPU) == ("native", [])
    assert chosen(torch.device("mps")) == ("reference", [])


def test_threads_that_choose_at_once_warn_once(machine: Machine) -> None:
    machine(of_driver=12040)
    together = threading.Barrier(8)

    def choose(index: int) -> None:
        together.wait()
        dispatch.choose(torch.device("cuda", index), None)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=choose, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(said) == 1


def test_what_a_capture_forbids_is_no_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()

    def fail(index: int) -> str:
        raise RuntimeError("ndfast: CUDA error in loading the kernels: operation not permitted")

    ops = torch.ops.ndfast_cuda
    monkeypatch.setattr(ops, "why_unusable", fail)
    with pytest.raises(RuntimeError, match="loading the kernels: operation not permitted"):
        dispatch.choose(GPU, None)
    monkeypatch.setattr(ops, "why_unusable", lambda index: "")
    assert chosen(GPU) == ("cuda", [])


@pytest.fixture
def no_library(fresh_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unusable", lambda device: "the compiled library is not there")


@pytest.mark.usefixtures("no_library")
def test_the_reference_on_a_cpu_is_said_to_who_calls(seed: int) -> None:
    student = torch.randn(3, 4, requires_grad=True)
    rows = (None, torch.randn(2, 4), torch.tensor([0, 1, 1]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ndfast.nd_loss(student, *rows).backward()
        ndfast.NDLoss(rows[1])(student, None, rows[2])
    (warning,) = said
    assert warning.filename == __file__
    assert str(warning.message).startswith(
        "nd_loss: backend 'reference' runs on cpu tensors, several times slower than compiled "
        "code. 'native' cannot: the compiled library is not there. "
    )


@pytest.mark.usefixtures("no_library")
def test_a_compiled_step_is_one_graph_and_warns(seed: int) -> None:
    rows = (None, torch.randn(2, 4), torch.tensor([0, 1, 1]))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(student: torch.Tensor) -> torch.Tensor:
        return ndfast.nd_loss(2 * student, *rows)

    student = torch.randn(3, 4, requires_grad=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = step(student)
        loss.backward()
        step(student)
    assert len([w for w in said if "nd_loss" in str(w.message)]) == 1
    torch.testing.assert_close(
        loss, ndfast.nd_loss(2 * student, *rows, backend="reference"), rtol=1e-6, atol=1e-7
    )


WITHOUT_LIBRARY = """
import sys, warnings
sys.modules["ndfast._C"] = None
warnings.simplefilter("always")
import torch, ndfast
from ndfast.environment import describe_environment
describe_environment()
rows = torch.randn(3, 4), None, torch.randn(2, 4), torch.tensor([0, 1, 1])
for _ in range(3):
    ndfast.nd_loss(*rows, backend="reference")
print("asked for", file=sys.stderr)
for _ in range(3):
    ndfast.nd_loss(*rows)
"""


def test_a_process_without_the_library() -> None:
    command = [sys.executable, "-c", WITHOUT_LIBRARY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    warning = "UserWarning: nd_loss: backend 'reference' runs on cpu"
    parts = done.stderr.split("asked for\n")
    assert [part.count(warning) for part in parts] == [0, 1], done.stderr
    assert reference.unusable(CPU) is None
