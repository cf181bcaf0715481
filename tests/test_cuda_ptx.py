"""The CUDA kernels as nvcc made them, run on the CPU: they need what they have, and no more.

That they compute what is defined is in test_cuda_kernels.py and test_class_mean_gradients.py.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from cases import assert_as_defined, draw
from compiled_ptx import Machine
from sanitized import ROOT, Sanitizer

# A kernel's name, its barriers, and rows, width and classes that have threads meet at each.
BARRIERS = {
    "a row on lanes": (r"forward_kernelIfffLi4ENS0_9LaneGroupILi8EEEfLb0", 4, (70, 128, 4)),
    "a row on a block": (r"forward_kernelIfffLi4ENS0_10BlockGroupIfEEfLb0", 3, (9, 1024, 4)),
    "a row in rounds": (r"forward_loop_kernelIffffLb0", 3, (9, 6400, 4)),
}


@pytest.mark.parametrize("what", BARRIERS)
def test_every_barrier_is_missed(
    what: str, ptx_machine: Machine, library_in_ptx: list[str], cuda_in_ptx: None, seed: int
) -> None:
    name, count, (N, D, K) = BARRIERS[what]
    (module,) = (m for m in library_in_ptx if re.search(rf"\.entry \w*{name}", m))
    entry = re.search(rf"\.entry \w*{name}.*?(?=\.visible|\Z)", module, re.DOTALL)
    assert entry is not None
    barriers = [m.span() for m in re.finditer(r"bar\.sync[^;]*;", entry[0])]
    assert len(barriers) == count
    case = draw(N, D, K, torch.float32)
    assert_as_defined(case, "cuda", what)
    for begin, end in barriers:
        without = entry[0][:begin] + entry[0][end:]
        number = ptx_machine.load(module.replace(entry[0], without))
        try:
            with pytest.raises(RuntimeError, match=r"a race in|nobody has written"):
                assert_as_defined(case, "cuda", (what, begin))
        finally:
            ptx_machine.unload(number)


# Each tensor is an allocation of its own, and AddressSanitizer knows where it ends.
BOUNDS = """
import ctypes, sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from cases import assert_as_defined, draw
from compiled_ptx import Machine
from emulated_cuda import compile_and_load, on_the_cpu
from ptx_kernels import run

emulated, library, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
machine = Machine(Path(library))
for last, message in ((3, ""), (4, "out of bounds of a tensor")):
    try:
        run(machine, f"ld.global.u32 %r3, [%rd1+{{4 * last}}];", torch.zeros(4), threads=1)
        assert not message
    except RuntimeError as error:
        assert message and message in str(error), error

machine.load_library()
compile_and_load(Path(emulated))
torch.ops.ndfast_emulator.run_compiled_by(library, seed)
torch.manual_seed(seed)
with on_the_cpu():
    halves = (torch.bfloat16, torch.float16)
    together = [(x, x) for x in (torch.float32, *halves)]
    for dtype, teacher in [*together, *((torch.float32, x) for x in halves)]:
        for D in (1, 24, 37, 104, 232, 480, 1000, 2056, 8240):
            for N, target in ((1, "indices"), (9, "mix by row"), (9, "a centre a row")):
                for attached in (False, True):
                    options = dict(target=target, attached=attached, weighted=True)
                    case = draw(N, D, 3, dtype, teacher_dtype=teacher, **options)
                    assert_as_defined(case, "cuda", (dtype, teacher, D, target))
print("within bounds")
"""


@pytest.mark.long
def test_nothing_is_accessed_out_of_bounds(
    emulator: None, shared_folder: Path, ptx_machine: Machine, library_in_ptx: list[str], seed: int
) -> None:
    sanitizer = Sanitizer(
        "address", ("libasan.so", "libstdc++.so"), {"ASAN_OPTIONS": "detect_leaks=0"}
    )
    reason = sanitizer.missing()
    if reason is not None:
        pytest.skip(reason)
    program = BOUNDS.format(root=str(ROOT), tests=str(ROOT / "tests"))
    done: subprocess.CompletedProcess[str] = sanitizer.run(
        ROOT, program, str(shared_folder / "emulated_cuda"), str(ptx_machine.path), str(seed)
    )
    assert done.stdout.endswith("within bounds\n"), done.stdout + done.stderr
