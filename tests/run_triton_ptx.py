"""Runs the Triton backend on CPU tensors with its kernels compiled, their PTX run by ptx_machine/.

`tests/test_triton_ptx.py` runs this as a program, because Triton decides at import whether kernels
are interpreted. stdin: JSON, the machine's library, a seed, and calls and batches, each a GPU's
capability and arguments of `cases.draw`. stdout: JSON, the names of the kernels that ran, and of
each batch what its ways move, per byte of its student. The first result that is not as defined ends
it, and so does the first thing that no kernel may do.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from cases import Case, assert_as_defined, draw, rows_of
from compiled_ptx import Machine
from made_up_gpu import Driver
from triton.compiler import CompiledKernel

from ndfast.backends import triton as backend
from ndfast.backends.triton import launcher

C_TYPES = {
    "i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip


class RunningDriver(Driver):
    """Launches run, one after the other, in the machine.

    Attributes:
        names: the kernels that have run.
    """

    def __init__(self, capability: int, machine: Machine, seed: int) -> None:
        super().__init__(capability)
        self.machine, self.seed = machine, seed
        self.names: set[str] = set()

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        module = self.machine.load(self.ptx)
        types = list(source.signature.values())

        def launch(
            x: int, y: int, z: int, stream: int, function: Any, packed_metadata: Any,
            launch_metadata: Any, enter_hook: Any, exit_hook: Any, *arguments: Any,
        ) -> None:  # fmt: skip
            parameters = [
                ctypes.c_void_p(argument if isinstance(argument, int) else argument.data_ptr())
                if kind.startswith("*") else C_TYPES[kind](argument)
                for kind, argument in zip(types, arguments, strict=True) if kind != "constexpr"
            ]  # fmt: skip
            # Two more pointers, to memory that Triton's own tools ask for.
            parameters += [ctypes.c_void_p(0), ctypes.c_void_p(0)]
            self.machine.launch(
                module, metadata.name, (x, y, z), 32 * metadata.num_warps, parameters,
                metadata.shared, self.seed,
            )  # fmt: skip
            self.names.add(metadata.name)

        return launch


def drawn(arguments: dict[str, Any]) -> Case:
    dtypes = {name: getattr(torch, d) for name, d in arguments.items() if name.endswith("dtype")}
    return draw(**{**arguments, **dtypes})


def moved(machine: Machine, case: Case) -> dict[str, list[float]]:
    """Read of student, teacher or the classifier's gradient, and written, per byte of student.

    Raises AssertionError where forward writes another gradient than is written anew.
    """
    case.class_means[:, ::3] = 0  # of these come zeros of either sign
    rows = rows_of(case)
    student, teacher, *labels = rows[:7]
    with machine.counting(student, teacher) as forward:
        _, saved, grad_student = backend.forward(*rows, 2, True)
    call, one = (saved, student), torch.ones(())
    with machine.counting(student) as finished:
        backend.finish_gradient_(grad_student, one, *call, *labels, written_for=1.0)
    with machine.counting(student) as anew:
        backend.finish_gradient_(grad_student, one, *call, *labels, written_for=2.0)
    in_forward = backend.forward(*rows, 2, True, upstream=4.0)[2]
    backend.finish_gradient_(grad_student, 4 * one, *call, *labels)
    assert torch.equal(in_forward, grad_student)
    assert torch.equal(in_forward.signbit(), grad_student.signbit())
    features = torch.randn(student.shape).to(student.dtype)
    with machine.counting(student, features) as attached:
        backend.backward(one, *call, teacher, *labels, features, True, False, False)
    counts = {"forward": forward, "finished": finished, "anew": anew, "attached": attached}
    return {way: [n / student.nbytes for n in count] for way, count in counts.items()}


def main() -> None:
    given = json.load(sys.stdin)
    machine = Machine(Path(given["machine"]))
    init_handles = CompiledKernel._init_handles

    def with_ptx(self: Any) -> None:
        triton.runtime.driver.active.ptx = self.asm["ptx"]
        init_handles(self)

    drivers = {gpu: RunningDriver(gpu, machine, given["seed"]) for gpu in (80, 90, 100)}
    torch.manual_seed(given["seed"])
    batches = []
    with (
        patch.object(CompiledKernel, "_init_handles", with_ptx),
        patch.object(backend, "unusable", lambda device: None),
        patch.object(launcher, "num_sms", lambda device: 2),
    ):
        for gpu, arguments in given["calls"]:
            triton.runtime.driver.set_active(drivers[gpu])
            assert_as_defined(drawn(arguments), "triton", (gpu, arguments))
        for gpu, arguments in given["batches"]:
            triton.runtime.driver.set_active(drivers[gpu])
            batches.append(moved(machine, drawn(arguments)))
    names = sorted(set().union(*(driver.names for driver in drivers.values())))
    json.dump({"names": names, "moved": batches}, sys.stdout)


if __name__ == "__main__":
    main()
