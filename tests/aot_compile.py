"""Compiles the Triton kernels for GPUs that are not there, and reads the machine code.

`tests/test_triton_aot.py` runs this as a program, because Triton decides at import whether kernels
are interpreted. stdin: a JSON list of calls; stdout: a JSON list of what was found in each.

The launcher runs as ever, on CPU tensors; only the driver that says which GPU is there is made up,
and kernels are compiled where they would be launched. So types, alignments and options are the
JIT's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from made_up_gpu import Driver
from triton.runtime.jit import JITFunction

from ndfast.backends import triton as backend
from ndfast.backends.reference import accumulation_dtype

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
K = 10


def call(
    kernel: str,
    D: int,
    dtype: str,
    means_dtype: str = "float32",
    teacher: str = "features",
    target: str = "indices",
    lam_by_row: bool = False,
    weighted: bool = False,
    reduction: int = 1,
    num_coefficients: int = 0,
    gradient: bool = True,
    offset: int = 0,
) -> None:
    """A call of the launcher, one launch; ``offset`` misaligns the student."""
    N = 64
    row_dtype = getattr(torch, dtype)
    student = torch.zeros(N * D + offset, dtype=row_dtype)[offset:].view(N, D)
    features, norms = torch.zeros(N, D, dtype=row_dtype), torch.zeros(N)
    given = {"features": features, "norms": norms, "absent": None}[teacher]
    labels = torch.zeros(N, dtype=torch.int64)
    means_rows = N if target == "a centre a row" else K
    class_means = torch.zeros(means_rows, D, dtype=getattr(torch, means_dtype))
    target_a = None if target == "a centre a row" else labels
    target_b = labels if target == "mix" else None
    centres = (class_means, target_a, target_b, torch.zeros(N) if lam_by_row else None, 0.5)
    sums = accumulation_dtype(student)
    upstream, saved = torch.ones((), dtype=sums), torch.ones(1 + 4 * N, dtype=sums)
    if kernel == "scalars":  # deferred: the forward, and two coefficients a row for the backward
        kernel, num_coefficients, gradient = "forward", 2, False
    if kernel == "forward":
        backend.forward(
            student, given, *centres, torch.zeros(N) if weighted else None,
            1.0, reduction, -100, 1e-8, num_coefficients, gradient,
        )  # fmt: skip
    elif kernel == "finish":
        backend.finish_gradient_(torch.zeros_like(student), upstream, saved, student, *centres)
    else:
        needs = {
            "backward": (True, teacher == "features", False),
            "student": (True, False, False),
            "attached": (True, False, False),
            "class means": (False, False, True),
        }[kernel]
        grad_features = torch.zeros_like(student) if kernel == "attached" else None
        backend.backward(upstream, saved, student, given, *centres, grad_features, *needs)


def read(compiled: Any) -> dict[str, Any]:
    """What is counted in PTX and in machine code."""
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found, usage
    instruction = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", re.M)
    names = instruction.findall(code)

    def count(prefix: str, among: list[str] = names) -> int:
        return sum(name.startswith(prefix) for name in among)

    def after_the_first(prefix: str) -> list[str]:
        return names[next((i for i, name in enumerate(names) if name.startswith(prefix)), 0) :]

    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "local": int(found[4]) + count("LDL") + count("STL"),
        "wide_loads": count("LDG.E.128"),
        "wide_stores": count("STG.E.128"),
        "wide_loads_after_shuffle": count("LDG.E.128", after_the_first("SHFL")),
        "wide_loads_after_store": count("LDG.E.128", after_the_first("STG")),
        "loads": len(re.findall(r"\bld\.global", ptx)),
        "stores": len(re.findall(r"\bst\.global", ptx)),
        "atomics": len(re.findall(r"\batom\.", ptx)),
        "fused": len(re.findall(r"\bfma\.", ptx)),
    }


def _run(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    results = []
    launched: list[Any] = []
    run = JITFunction.run

    def compile_instead(
        self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any
    ) -> None:
        launched.append(run(self, *arguments, grid=grid, warmup=True, **options))

    JITFunction.run = compile_instead
    for capability, arguments in json.load(sys.stdin):
        triton.runtime.driver.set_active(Driver(capability))
        call(**arguments)
        results.append(read(launched.pop()))
        assert not launched, "one call is one launch"
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
