"""Kernels as their compilers left them, run on the CPU by ptx_machine/: PTX, not machine code."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from torch import Tensor
from torch.utils.cpp_extension import get_cxx_compiler, load

from ndfast.backends import cuda

SOURCES = Path(__file__).parent / "ptx_machine"


def build(folder: Path) -> Path:
    """The machine as a library in ``folder``; skips without a compiler."""
    if shutil.which(get_cxx_compiler()) is None:
        pytest.skip("no C++ compiler here")
    load(
        "ptx_machine",
        [str(SOURCES / "whole.cpp")],
        # A sum and a product are two roundings, as the PTX has it.
        extra_cflags=["-std=c++20", "-O2", "-Wno-psabi", "-ffp-contract=off"],
        build_directory=str(folder),
        is_python_module=False,
    )
    return folder / "ptx_machine.so"


class Machine:
    """The library, loaded."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))
        self._library.ptx_error.restype = ctypes.c_char_p
        self._library.ptx_load.restype = ctypes.c_int64
        self._library.ptx_launch.restype = ctypes.c_int64

    def load(self, text: str) -> int:
        """The number of a module."""
        return self._checked(self._library.ptx_load(text.encode()))

    def unload(self, module: int) -> None:
        """Kernels of its names are again those of the module before it."""
        self._library.ptx_unload(ctypes.c_int64(module))

    @contextmanager
    def counting(self, *tensors: Tensor) -> Iterator[list[int]]:
        """Has, at its end, the bytes that were read of each tensor, and those written in all."""
        begins = [tensor.data_ptr() for tensor in tensors]
        ends = [tensor.data_ptr() + tensor.nbytes for tensor in tensors]
        many = ctypes.c_uint64 * len(tensors)
        self._library.ptx_count(ctypes.c_size_t(len(tensors)), many(*begins), many(*ends))
        counts: list[int] = []
        yield counts
        found = (ctypes.c_uint64 * (len(tensors) + 1))()
        self._library.ptx_counted(found)
        counts.extend(found)
        self._library.ptx_count(ctypes.c_size_t(0), many(), many())

    def load_library(self) -> list[str]:
        """All kernels of the library as it is built; skips where it has no PTX.

        Returns:
            The texts of its modules.
        """
        if cuda.missing is not None:
            pytest.skip(cuda.missing)
        pytest.importorskip("triton", reason="its wheel brings the disassembler")
        from machine_code import cuobjdump

        listing = "\n".join(cuobjdump("-ptx", str(import_module("ndfast._C").__file__)))
        modules = re.split(r"(?m)^(?=\.version )", listing)[1:]
        if not modules:
            pytest.skip("the library was built without PTX")
        for module in modules:
            self.load(module)
        return modules

    def launch(
        self,
        module: int,
        kernel: str,
        blocks: tuple[int, int, int],
        threads: int,
        parameters: list[ctypes._SimpleCData],
        shared_bytes: int = 0,
        seed: int = 0,
    ) -> None:
        """Runs a kernel to its end.

        Raises:
            RuntimeError: it did what no kernel may: what, which instruction and which thread.
        """
        count = len(parameters)
        addresses = (ctypes.c_void_p * count)(*map(ctypes.addressof, parameters))
        sizes = (ctypes.c_size_t * count)(*map(ctypes.sizeof, parameters))
        self._checked(
            self._library.ptx_launch(
                ctypes.c_int64(module), kernel.encode(), (ctypes.c_uint * 3)(*blocks),
                (ctypes.c_uint * 3)(threads, 1, 1), ctypes.c_size_t(shared_bytes),
                ctypes.c_size_t(count), addresses, sizes, ctypes.c_uint64(seed),
            )
        )  # fmt: skip

    def _checked(self, result: int) -> int:
        if result < 0:
            raise RuntimeError(self._library.ptx_error().decode())
        return result
