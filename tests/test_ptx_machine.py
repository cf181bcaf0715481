"""The machine that runs PTX finds what no kernel may do."""

from __future__ import annotations

import ctypes

import pytest
import torch
from compiled_ptx import Machine
from ptx_kernels import KERNEL, run

OWN = "mov.u32 %r3, buffer; add.s32 %r4, %r3, %r2; xor.b32 %r5, %r2, 4; add.s32 %r5, %r3, %r5;"
LAST = """
  setp.ne.s32 %p1, %r1, 0;
  mov.u32 %r3, %ctaid.x;
  mul.wide.u32 %rd3, %r3, 4;
  add.s64 %rd3, %rd1, %rd3;
  mov.u64 %rd5, ticket;
  {write}
  @%p1 bra DONE;
  atom.acq_rel.gpu.global.inc.u32 %r4, [%rd5], 1;
  setp.ne.s32 %p2, %r4, 1;
  @%p2 bra DONE;
  ld.global.u32 %r5, [%rd1];
  ld.global.u32 %r6, [%rd1+4];
  st.global.v2.u32 [%rd2], {{%r5, %r6}};
DONE:"""
BY_FIRST = LAST.format(write="add.s32 %r7, %r3, 5; @!%p1 st.global.u32 [%rd3], %r7;")
# What should be, what is planted, blocks, and what is said of it.
PLANTED = {
    "read beside a write": (
        f"{OWN} st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r6, [%r5];",
        f"{OWN} st.shared.u32 [%r4], %r1; ld.shared.u32 %r6, [%r5];",
        1, r"a race in shared memory with thread \d+, which (wrote|read)|nobody has written",
    ),
    "write beside a read": (
        f"{OWN} st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r6, [%r5]; bar.sync 0;"
        " st.shared.u32 [%r4], 99;",
        f"{OWN} st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r6, [%r5];"
        " st.shared.u32 [%r4], 99;",
        1, r"a race in shared memory with thread \d+, which (wrote|read)",
    ),
    "two write": (  # the same, which Triton has threads do
        "mov.u32 %r3, buffer; st.shared.u32 [%r3], 7;",
        "mov.u32 %r3, buffer; st.shared.u32 [%r3], %r1;",
        1, r"a race in shared memory with thread \d+, which wrote",
    ),
    "shared memory that nobody wrote": (
        f"{OWN} st.shared.u32 [%r4], 0; ld.shared.u32 %r6, [%r4];",
        f"{OWN} ld.shared.u32 %r6, [%r4];",
        1, "shared memory is read that nobody has written",
    ),
    "out of shared memory": (
        f"{OWN} st.shared.u32 [%r4+128], 0;", f"{OWN} st.shared.u32 [%r4+132], 0;",
        1, "out of the block's shared memory",
    ),
    "misaligned": (
        "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1];",
        "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1+8];",
        1, "16 bytes at an address that is no multiple of that",
    ),
    "a null pointer": (
        "ld.global.u32 %r3, [%rd1];", "mov.u64 %rd3, 0; ld.global.u32 %r3, [%rd3+16];",
        1, "a null pointer",
    ),
    "no such parameter": (
        "ld.param.u64 %rd3, [a+8];", "ld.param.u64 %rd3, [b+8];", 1, "out of the kernel's",
    ),
    "an unset register": (
        "mov.u32 %r4, 1; add.s32 %r3, %r4, 1;", "add.s32 %r3, %r4, 1;",
        1, r"a register is read that nothing was written to: `add.s32 %r3, %r4, 1`, thread \d+ of",
    ),
    "a barrier for some": (
        "setp.lt.u32 %p1, %r1, 64; @%p1 bar.sync 0;", "setp.lt.u32 %p1, %r1, 31; @%p1 bar.sync 0;",
        1, "at a barrier|the barrier at which others wait",
    ),
    "a shuffle for some": (
        "shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;",
        "setp.lt.u32 %p1, %r1, 31; @%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;",
        1, "not all at the same instruction of the warp",
    ),
    "two blocks at one address": (
        "mov.u32 %r3, %ctaid.x; setp.ne.s32 %p1, %r3, 0; @!%p1 st.global.u32 [%rd1], 1;"
        " @%p1 ld.global.u32 %r4, [%rd2];",
        "mov.u32 %r3, %ctaid.x; mul.lo.s32 %r4, %r3, 9; add.s32 %r4, %r4, %r1;"
        " st.global.u32 [%rd1], %r4;",
        2, r"a race in global memory with thread \d+ of block \d, which wrote",
    ),
    "released by another thread": (  # without a barrier before it
        LAST.format(write="setp.eq.s32 %p3, %r1, 1; add.s32 %r7, %r3, 5;"
                    " @%p3 st.global.u32 [%rd3], %r7; bar.sync 0;"),
        LAST.format(write="setp.eq.s32 %p3, %r1, 1; add.s32 %r7, %r3, 5;"
                    " @%p3 st.global.u32 [%rd3], %r7;"),
        2, r"a race in global memory with thread 1 of block \d, which wrote",
    ),
    "not released": (
        BY_FIRST, BY_FIRST.replace("acq_rel.", ""), 2, "such an atomic is not done",
    ),
    "read as read-only": (
        "ld.global.nc.u32 %r3, [%rd1]; bar.sync 0; st.global.u32 [%rd2], 1;",
        "st.global.u32 [%rd1], 1; bar.sync 0; ld.global.nc.u32 %r3, [%rd1];",
        1, "read as read-only, and written by thread",
    ),
    "no end": ("bra ON; ON:", "ON: bra ON;", 1, "a thread does not come to an end"),
    "an unknown instruction": (
        "min.u32 %r3, %r1, 1;", "vmin.u32 %r3, %r1, 1;", 1, "not known: vmin",
    ),
    "an address of any space": (
        "ld.global.u32 %r3, [%rd1];", "ld.u32 %r3, [%rd1];", 1, "an address of any space: ld.u32",
    ),
    "an unknown part of a name": (
        "cvt.rn.f32.f64 %r3, 0d3FF8000000000000;", "cvt.rn.sat.f32.f64 %r3, 0d3FF8000000000000;",
        1, r"not known: \.sat",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_what_no_kernel_may_do_is_found(ptx_machine: Machine, what: str, seed: int) -> None:
    right, wrong, blocks, message = PLANTED[what]
    for order in range(seed, seed + 3):
        results = torch.zeros(64), torch.zeros(2, dtype=torch.int32)
        run(ptx_machine, right, *results, blocks=blocks, seed=order)
        if "DONE" in right:
            assert results[1].tolist() == [5, 6]
        with pytest.raises(RuntimeError, match=message):
            run(ptx_machine, wrong, *results, blocks=blocks, seed=order)


def test_what_a_launch_may_not_ask_for(ptx_machine: Machine) -> None:
    run(ptx_machine, "", threads=64)
    with pytest.raises(RuntimeError, match="more threads than the kernel is for"):
        run(ptx_machine, "", threads=96)
    module = ptx_machine.load(KERNEL.replace("BODY", ""))
    pointer = ctypes.c_void_p(0)
    for parameters, message in (
        ([pointer], "another number of parameters"),
        ([pointer, ctypes.c_int32(0)], "a parameter of another size"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ptx_machine.launch(module, "kernel", (1, 1, 1), 32, parameters)
