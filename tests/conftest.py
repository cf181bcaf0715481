"""What holds for every test: Triton's interpreter where there is no GPU, fresh seeds, poison."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest-xdist's workers, and the processes that they start, share the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch

if not torch.cuda.is_available():
    # Before ndfast is imported: Triton decides when a kernel is defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import compiled_ptx
from emulated_cuda import compile_and_load, on_the_cpu

import ndfast
from ndfast import autograd, upstream
from ndfast.backends import native

# A worker of pytest-xdist that took one of these last would keep the others waiting. Triton's come
# second, for they need nothing of what the first file compiles.
SLOWEST = (
    "test_cuda_kernels", "test_triton", "test_fuzz", "test_class_mean_gradients",
    "test_train_recipes", "test_train_run_folder", "test_triton_launch",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; the Makefile has pytest-xdist keep to the order."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """What the imports left is never collected: Accelerate collects garbage twice a run."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """The interpreter, where it ends, takes everything apart again."""
    gc.unfreeze()


@pytest.fixture
def seed() -> int:
    """A fresh seed each run; a failure shows it, NDFAST_TEST_SEED repeats it."""
    seed = int(os.environ.get("NDFAST_TEST_SEED", int.from_bytes(os.urandom(4), "little")))
    print(f"NDFAST_TEST_SEED={seed}")
    torch.manual_seed(seed)
    return seed


def fill_what_malloc_gives(complement: int) -> None:
    """Has glibc's malloc fill memory with a byte's complement; 0: with nothing."""
    M_PERTURB = -6
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_PERTURB, complement)


@pytest.fixture(autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """Elements that a kernel leaves out are seen: NaN where they are torch.empty's.

    The library's outputs on the CPU are not, for its ABI goes past what fills these: bytes of 0xfe
    make float16 NaN, and -1.7e38 or more of other types.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    fill_what_malloc_gives(0x01)
    yield
    fill_what_malloc_gives(0)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def untouched_memory(poisoned_outputs: None) -> None:
    """Without it: memory that is allocated and never touched is not committed."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    fill_what_malloc_gives(0)


@pytest.fixture(autouse=True)
def no_upstream_gradient_is_expected() -> None:
    """Whichever tests have come before in this process."""
    for known in (*upstream.BY_DTYPE.values(), *upstream.ON_GPUS.values()):
        known.forget()


@pytest.fixture
def written_for(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The upstream gradients that the forwards of the test write for; None: backward writes."""
    told: list[float | None] = []
    run_forward = autograd._run_forward

    def spy(ctx: Any, call: Any, upstream: float | None) -> Any:
        told.append(upstream)
        return run_forward(ctx, call, upstream)

    monkeypatch.setattr(autograd, "_run_forward", spy)
    return told


@pytest.fixture(autouse=True)
def no_precision_stays() -> Iterator[None]:
    """Accelerate, where a test uses it, keeps to one precision in a process."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state()


@pytest.fixture(scope="module", autouse=True)
def no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """None in the pages of runs: drawing them takes most of a short run's time."""
    pages = sys.modules.get("ndfast.train.report.pages")
    with pytest.MonkeyPatch.context() as patch:
        if pages is not None and request.node.get_closest_marker("pictures") is None:
            for kind in ("run", "comparison", "detection"):
                patch.setattr(pages, f"{kind}_pictures", lambda *_: [])
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def emulator(shared_folder: Path) -> None:
    """Compiled once for all tests that run the CUDA kernels on the CPU."""
    folder = shared_folder / "emulated_cuda"
    folder.mkdir(exist_ok=True)
    compile_and_load(folder)


@pytest.fixture(scope="session")
def ptx_machine(shared_folder: Path) -> compiled_ptx.Machine:
    """Compiled once for all tests that run PTX."""
    folder = shared_folder / "ptx_machine"
    folder.mkdir(exist_ok=True)
    return compiled_ptx.Machine(compiled_ptx.build(folder))


@pytest.fixture(scope="session")
def library_in_ptx(ptx_machine: compiled_ptx.Machine) -> list[str]:
    """The library's modules, whose kernels the machine can run."""
    return ptx_machine.load_library()


@pytest.fixture
def emulated_cuda(emulator: None) -> Iterator[None]:
    """Backend "cuda" on CPU tensors."""
    with on_the_cpu():
        yield


@pytest.fixture
def cuda_in_ptx(
    ptx_machine: compiled_ptx.Machine, library_in_ptx: list[str], emulated_cuda: None, seed: int
) -> Iterator[None]:
    """The kernels are nvcc's: threads and blocks take turns in an order of the seed's."""
    torch.ops.ndfast_emulator.run_compiled_by(str(ptx_machine.path), seed)
    yield
    torch.ops.ndfast_emulator.run_compiled_by("", 0)


@pytest.fixture(params=["C++", "PTX"])
def cuda_code(request: pytest.FixtureRequest) -> str:
    """Backend "cuda" on CPU tensors, its kernels compiled by the C++ compiler and by nvcc."""
    request.getfixturevalue("emulated_cuda" if request.param == "C++" else "cuda_in_ptx")
    return request.param


@pytest.fixture(params=["reference", "native", "cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend on CPU tensors: cuda emulated, triton interpreted."""
    if request.param == "cuda":
        request.getfixturevalue("emulated_cuda")
    reason = ndfast.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(params=native.capabilities())
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native backend on each instruction set that this processor has."""
    before = native.capability()
    native.set_capability(request.param)
    assert native.capability() == request.param
    yield request.param
    native.set_capability(before)
