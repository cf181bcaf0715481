"""The count of what a row issues: followed by hand, and bounds for the library's kernels."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ndfast.backends import cuda

pytest.importorskip("triton", reason="its wheel brings the disassembler")

from issue_slots.lanes import Instruction
from issue_slots.launches import CudaLaunches
from issue_slots.slots import DTYPES, FEATURES, KINDS, instructions_of_row, percent
from issue_slots.warp import Launch, Warp
from machine_code import read


def launch_of(text: str, parameters: bytes = b"", labels: tuple[int, bytes] = (0, b"")) -> Launch:
    """A launch of one warp of this code, an instruction a line, 16 bytes apart."""
    code = {}
    for place, line in enumerate(text.strip().splitlines()):
        guard, _, rest = line.strip().rpartition(": ")
        opcode, _, operands = rest.partition(" ")
        found = tuple(filter(None, map(str.strip, operands.split(","))))
        code[16 * place] = Instruction(16 * place, guard, opcode, found)
    return Launch(code, (32, 1), parameters, 0x160, labels, rows=4)


ROUNDS = """
    LDC R0, c[0x0][0x160]
    FADD R1, R1, R1
    IADD3 R0, R0, -0x1, RZ
    ISETP.NE.AND P0, PT, R0, RZ, PT
    @P0: BRA 0x10
    EXIT
"""


def rounds(count: int) -> Launch:
    return launch_of(ROUNDS, count.to_bytes(4, "little"))


def test_a_loop_is_gone_round_as_its_parameter_says() -> None:
    assert [Warp(rounds(count), 0).run() for count in (1, 2, 7)] == [6, 10, 30]


def test_what_a_further_round_issues() -> None:
    class Rounds:
        def record(self, gpu: str, kind: str, D: int, dtype: torch.dtype, rounds_: int) -> Launch:
            return rounds(rounds_)

    call = ("fused forward", 64, torch.float32)
    assert instructions_of_row(Rounds(), "sm_80", *call) == 1.0  # four, for four rows
    # 768 bytes at 0.9 * 2.039e12 a second are 4.185e-10 s; 108 * 4 * 1.41e9 slots a second: 254.9
    found = percent(Rounds(), *call)
    assert found["A100"] == pytest.approx(100 / 254.92, rel=1e-4)
    # 768 / (0.9 * 3.35e12) * 132 * 4 * 1.755e9 = 236.0, and with 4.8e12 164.7
    assert found["H100"] == pytest.approx(100 / 236.04, rel=1e-4)
    assert found["H200"] == pytest.approx(100 / 164.74, rel=1e-4)


@pytest.mark.parametrize(("first_that_leaves", "issued"), [("0x10", 7), ("0x20", 6), ("0x0", 5)])
def test_lanes_that_part_issue_both_ways(first_that_leaves: str, issued: int) -> None:
    launch = launch_of(f"""
        S2R R0, SR_TID.X
        ISETP.GE.AND P0, PT, R0, {first_that_leaves}, PT
        @P0: BRA 0x50
        FADD R1, R1, R1
        BRA 0x60
        FMUL R1, R1, R1
        EXIT
    """)
    assert Warp(launch, 0).run() == issued


LABEL = """
    LDC.64 R2, c[0x0][0x160]
    LDG.E.64 R4, desc[UR4][R2.64+0x8]
    ISETP.GE.U32.AND P0, PT, R4, 0x5, PT
    ISETP.GE.U32.AND.EX P0, PT, R5, RZ, PT, P0
    @P0: EXIT
    FADD R1, R1, R1
    EXIT
"""


@pytest.mark.parametrize(("label", "issued"), [(4, 7), (5, 5), (2**32 + 4, 5), (-1, 5)])
def test_a_label_decides(label: int, issued: int) -> None:
    labels = bytes(8) + label.to_bytes(8, "little", signed=True)
    address = 2**40 + 16
    launch = launch_of(LABEL, address.to_bytes(8, "little"), (address, labels))
    assert Warp(launch, 0).run() == issued


def test_a_way_that_depends_on_other_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depends on a value in memory.*EXIT"):
        Warp(launch_of(LABEL, bytes(8)), 0).run()


# Percent of the issue slots: what docs/performance.md says of A100, H100 and H200.
MOST = {"A100": 50, "H100": 50, "H200": 70}
# A row's own arithmetic is dearer than its 128 bytes of each vector.
SHORT_ROWS = {"A100": 50, "H100": 53, "H200": 76}


@pytest.fixture(scope="module")
def cuda_launches(emulator: None, tmp_path_factory: pytest.TempPathFactory) -> CudaLaunches:
    if cuda.missing is not None:
        pytest.skip(cuda.missing)
    if shutil.which("c++filt") is None:
        pytest.skip("c++filt is not there to read the kernels' names")
    kernels = read(Path(str(import_module("ndfast._C").__file__)))
    if not {"sm_80", "sm_90"} <= {kernel.gpu for kernel in kernels}:
        pytest.skip("the library was not built for sm_80 and sm_90")
    return CudaLaunches(tmp_path_factory.mktemp("recorder"), kernels)


@pytest.mark.parametrize(
    "D",
    [pytest.param(D, marks=[] if D in (64, 768, 2048) else pytest.mark.long) for D in FEATURES],
)
def test_a_row_leaves_memory_time_enough(cuda_launches: CudaLaunches, D: int) -> None:
    for dtype in DTYPES:
        for kind in KINDS:
            is_short = D * dtype.itemsize == 128 and kind == "deferred forward"
            most = SHORT_ROWS if is_short else MOST
            for gpu, found in percent(cuda_launches, kind, D, dtype).items():
                assert found <= most[gpu], (gpu, kind, dtype)
