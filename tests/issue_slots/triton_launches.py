"""The launches of the Triton backend, recorded by a driver that is made up: nothing runs."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from issue_slots.lanes import Instruction
from issue_slots.launches import PARAMETERS_BEGIN, call
from issue_slots.warp import Launch
from machine_code import instructions_of
from made_up_gpu import Driver
from triton.compiler import CompiledKernel

from ndfast.backends import triton as backend
from ndfast.backends.triton import launch_table, launcher, workspace


class _Recorder(Driver):
    """A driver of Triton that keeps the last launch of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        super().__init__(capability)
        self.cubin = b""  # of the kernel that has been compiled last
        self.launched: tuple[bytes, int, bytes] | None = None

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        cubin, types = self.cubin, list(source.signature.values())

        def launch(
            x: int, y: int, z: int, stream: int, function: Any, packed_metadata: Any,
            launch_metadata: Any, enter_hook: Any, exit_hook: Any, *arguments: Any,
        ) -> None:  # fmt: skip
            parameters = b""
            for kind, argument in zip(types, arguments, strict=True):
                if kind == "constexpr":
                    continue
                if kind.startswith("*"):
                    argument = argument if isinstance(argument, int) else argument.data_ptr()
                code = {"i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}.get(kind, "Q")
                parameters += bytes(-len(parameters) % struct.calcsize(code))
                parameters += struct.pack(code, argument)
            self.launched = cubin, metadata.num_warps, parameters

        return launch


class TritonLaunches:
    """Records the launches of the Triton backend; kernels must not be interpreted."""

    def __init__(self) -> None:
        self._drivers = {gpu: _Recorder(int(gpu[3:])) for gpu in PARAMETERS_BEGIN}
        self._codes: dict[bytes, dict[int, Instruction]] = {}

    def record(self, gpu: str, kind: str, D: int, dtype: torch.dtype, rounds: int) -> Launch:
        """Of a batch for which a block goes ``rounds`` times round."""
        driver = self._drivers[gpu]
        rows = launch_table.default_config(D, dtype.itemsize).rows
        init_handles = CompiledKernel._init_handles

        def with_cubin(compiled: Any) -> None:
            driver.cubin = compiled.asm["cubin"]
            init_handles(compiled)

        triton.runtime.driver.set_active(driver)
        with (
            patch.object(CompiledKernel, "_init_handles", with_cubin),
            patch.object(launcher, "num_sms", lambda device: 2),
            patch.object(workspace, "num_sms", lambda device: 2),
        ):
            labels = call(backend, kind, rounds * rows, D, dtype)
        assert driver.launched is not None
        cubin, num_warps, parameters = driver.launched
        if cubin not in self._codes:
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(cubin)
                file.flush()
                (self._codes[cubin],) = instructions_of(Path(file.name)).values()
        return Launch(
            self._codes[cubin], (32 * num_warps, 1), parameters, PARAMETERS_BEGIN[gpu], labels,
            rows,
        )  # fmt: skip
