"""A driver of Triton for a GPU that is not there: kernels are compiled, launches are recorded.

For programs that tests run: Triton decides at import whether kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget


def output_of(program: str, given: Any = None) -> Any:
    """Runs a program of this folder with kernels compiled; stdin and stdout are JSON."""
    tests = Path(__file__).parent
    paths = [str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(tests / program)],
        input=json.dumps(given), capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


class Driver:
    """As much of Triton's driver as compiling and launching ask for.

    Attributes:
        device: the current device, at first the capability: the JIT keeps a target for each.
        stream: the current stream.
        launches: what was launched, oldest first: grid, stream, function and arguments, tensors by
            their addresses. Functions of equal machine code on one device are equal.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.device, self.stream = capability, 0
        self.launches: list[tuple[Any, ...]] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        function = f"{name} on {device}: {hash(code)}"
        return "module", function, 32, 0, 1024  # registers, spills, threads

    def unload_module(self, module: Any) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What a compiled kernel is launched by; Triton's own is written in C."""

        def launch(
            x: int, y: int, z: int, stream: int, function: Any, packed_metadata: Any,
            launch_metadata: Any, enter_hook: Any, exit_hook: Any, *arguments: Any,
        ) -> None:  # fmt: skip
            enter_hook(launch_metadata)
            pointers = [a.data_ptr() if hasattr(a, "data_ptr") else a for a in arguments]
            self.launches.append(((x, y, z), stream, function, pointers))
            exit_hook(launch_metadata)

        return launch
