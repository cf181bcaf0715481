"""What a usual call launches: its kernels, with the parameters that the launcher gave them.

Usual: int64 labels of 1000 classes, float32 class means, the teacher's features, no sample weights,
the mean. Nothing runs: the launcher, compiled for the CPU (tests/cuda_emulator), hands its launches
to recorder.cpp.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from issue_slots.warp import Launch
from machine_code import Kernel
from torch.utils.cpp_extension import get_cxx_compiler

K = 1000
# Where a kernel's parameters lie in its constants.
PARAMETERS_BEGIN = {"sm_80": 0x160, "sm_90": 0x210}


def call(ops: Any, kind: str, N: int, D: int, dtype: torch.dtype) -> tuple[int, bytes]:
    """Calls what is of this kind in ``ops``; where the labels lay, and they, all of class 7."""
    student, teacher = (torch.zeros(N, D, dtype=dtype) for _ in range(2))
    labels = torch.full((N,), 7, dtype=torch.int64)
    centres = torch.zeros(K, D), labels, None, None, 1.0
    is_fused = kind == "fused forward"
    options = None, 1.0, 1, -100, 1e-8, 2, is_fused  # no weights, weight 1, the mean
    _, saved, _ = ops.forward(student, teacher, *centres, *options)
    if kind.endswith("backward"):
        features = torch.zeros_like(student) if kind.startswith("attached") else None
        wanted = features, True, False, False  # the student's gradient alone
        ops.backward(torch.ones(()), saved, student, teacher, *centres, *wanted)
    address = labels.data_ptr()
    return address, ctypes.string_at(address, labels.nbytes)


class CudaLaunches:
    """Records the launches of csrc/cuda, which has been compiled for the CPU and loaded.

    Args:
        folder: where the recorder is compiled.
        kernels: the library's.
    """

    def __init__(self, folder: Path, kernels: list[Kernel]) -> None:
        compiler = get_cxx_compiler()
        if shutil.which(compiler) is None:
            pytest.skip("no C++ compiler here")
        self._library = str(folder / "recorder.so")
        source = Path(__file__).parent / "recorder.cpp"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self._library, source], check=True)
        self._recorder = ctypes.CDLL(self._library)
        self._recorder.recorded_kernel.restype = ctypes.c_char_p
        self._recorder.recorded_arguments.restype = ctypes.c_void_p
        self._recorder.recorded_threads.restype = ctypes.POINTER(ctypes.c_uint)
        self._kernels = {(kernel.gpu, kernel.symbol): kernel for kernel in kernels}

    def record(self, gpu: str, kind: str, D: int, dtype: torch.dtype, rounds: int) -> Launch:
        """Of a batch for which a block goes ``rounds`` times round."""
        rows = self._record(gpu, kind, 64, D, dtype).rows
        return self._record(gpu, kind, rounds * rows, D, dtype)

    def _record(self, gpu: str, kind: str, N: int, D: int, dtype: torch.dtype) -> Launch:
        torch.ops.ndfast_emulator.run_compiled_by(self._library, 0)
        try:
            labels = call(torch.ops.ndfast_emulated_cuda, kind, N, D, dtype)
        finally:
            torch.ops.ndfast_emulator.run_compiled_by("", 0)
        symbol = self._recorder.recorded_kernel().decode()
        x, y = self._recorder.recorded_threads()[:2]
        count = ctypes.c_size_t()
        begin = self._recorder.recorded_arguments(ctypes.byref(count))
        lanes = re.search(r"LaneGroupILi(\d+)E", symbol)
        return Launch(
            self._kernels[gpu, symbol].instructions, (x, y), ctypes.string_at(begin, count.value),
            PARAMETERS_BEGIN[gpu], labels, x // int(lanes[1]) if lanes else y,
        )  # fmt: skip
