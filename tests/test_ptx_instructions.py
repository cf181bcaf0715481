"""What the instructions do in the machine that runs PTX."""

from __future__ import annotations

import struct

import pytest
import torch
from compiled_ptx import Machine
from ptx_kernels import run


def f32(value: float) -> int:
    return int(struct.unpack("I", struct.pack("f", value))[0])


def f64(value: float) -> int:
    return int(struct.unpack("Q", struct.pack("d", value))[0])


NAN, ONE = "0f7FC00000", "0f3F800000"
# An instruction without its result, and the result's bits, by the PTX ISA.
RESULTS = {
    "add.s32 -1, 3": 2,
    "sub.u32 0, 1": 0xFFFFFFFF,
    "mul.lo.s32 65536, 65537": 65536,
    "mul.wide.s32 -3, 4": 2**64 - 12,
    "mul.wide.u32 0xffffffff, 2": 0x1FFFFFFFE,
    "mad.lo.s64 -3, 4, 2": 2**64 - 10,
    "mad.wide.s32 -3, 4, 2": 2**64 - 10,
    "div.u32 7, 2": 3,
    "div.s32 -7, 2": 0xFFFFFFFD,
    "rem.s32 -7, 2": 0xFFFFFFFF,
    "min.s32 -1, 1": 0xFFFFFFFF,
    "max.u64 1, 2": 2,
    "shl.b32 1, 31": 0x80000000,
    "shl.b32 1, 32": 0,
    "shr.u32 0x80000000, 31": 1,
    "shr.u32 0x80000000, 32": 0,
    "shr.s32 -8, 1": 0xFFFFFFFC,
    "shr.s32 -8, 40": 0xFFFFFFFF,
    "bfe.u32 0xabcd, 4, 8": 0xBC,
    "not.b32 5": 0xFFFFFFFA,
    "neg.s64 5": 2**64 - 5,
    "cvt.s64.s32 -1": 2**64 - 1,
    "cvt.u64.u32 -1": 0xFFFFFFFF,
    "cvt.u16.u32 0x12345": 0x2345,
    "cvt.rn.f32.u32 3": f32(3),
    "cvt.rn.f64.s64 -3": f64(-3),
    "cvt.f64.f32 0f3FC00000": f64(1.5),
    "cvt.rn.f32.f64 0d3FF8000000000000": f32(1.5),
    "cvt.f32.f16 0x3e00": f32(1.5),
    "cvt.f32.bf16 0x3fc0": f32(1.5),
    "cvt.rn.f16.f32 0f3F801000": 0x3C00,  # half way between two, to the even one
    "cvt.rn.bf16.f32 0f3F818000": 0x3F82,
    "cvt.rn.bf16x2.f32 0f3F800000, 0f40000000": 0x3F804000,  # the first is the high one
    "cvt.rn.f16x2.f32 0f3F800000, 0f40000000": 0x3C004000,
    # (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24, which a product that is rounded first does not have.
    "fma.rn.f32 0f3F800800, 0f3F800800, 0fBF801000": f32(2**-24),
    "add.rn.f32.bf16 0x3fc0, 0f3F800000": f32(2.5),
    "sqrt.rn.f32 0f40800000": f32(2),
    "rcp.rn.f64 0d4010000000000000": f64(0.25),
    "div.rn.f64 0d3ff0000000000000, 0d4010000000000000": f64(0.25),
    f"max.f32 {NAN}, {ONE}": f32(1),
    "selp.b32 1, 2, %p1": 2,
    "selp.b32 1, 2, %p2": 1,
}
# What a GPU approximates is off by 2 units in the last place, of which 2^23 make a float twice as
# large; zeros, Inf and NaN are exact.
APPROXIMATIONS = {
    "sqrt.approx.f32 0f40800000": (f32(2) - 2, f32(2) + 2),
    "sqrt.approx.ftz.f32 0f00000000": (f32(0),),
    "rcp.approx.f32 0f40400000": (f32(1 / 3) - 2, f32(1 / 3) + 2),
    "rcp.approx.f32 0f00000000": (f32(float("inf")),),
    "div.full.f32 0f3F800000, 0f40400000": (f32(1 / 3) - 2, f32(1 / 3) + 2),
}
COMPARISONS = {  # of 1 and 2, of 1 and 1, of NaN and 1
    "eq": (False, True, False), "ne": (True, False, False), "lt": (True, False, False),
    "le": (True, True, False), "gt": (False, False, False), "ge": (False, True, False),
    "equ": (False, True, True), "neu": (True, False, True), "ltu": (True, False, True),
    "leu": (True, True, True), "gtu": (False, False, True), "geu": (False, True, True),
    "num": (True, True, False), "nan": (False, False, True),
}  # fmt: skip


def bits_of(instruction: str, machine: Machine) -> int:
    name, operands = instruction.split(" ", 1)
    result = torch.full((1,), -1)
    body = f"""
  setp.ne.s32 %p1, 0, 0;
  not.pred %p2, %p1;
  {name} %rd3, {operands};
  st.global.u64 [%rd1], %rd3;"""
    run(machine, body, result, threads=1)
    return int(result.item()) % 2**64


@pytest.mark.parametrize("instruction", RESULTS)
def test_results(ptx_machine: Machine, instruction: str) -> None:
    bits = bits_of(instruction, ptx_machine)
    assert RESULTS[instruction] in (bits, bits % 2**32), hex(bits)


@pytest.mark.parametrize("instruction", APPROXIMATIONS)
def test_approximations(ptx_machine: Machine, instruction: str) -> None:
    assert bits_of(instruction, ptx_machine) in APPROXIMATIONS[instruction]


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(ptx_machine: Machine, name: str) -> None:
    pairs = ((ONE, "0f40000000"), (ONE, ONE), (NAN, ONE))
    for (a, b), holds in zip(pairs, COMPARISONS[name], strict=True):
        result = torch.full((2,), -1, dtype=torch.int32)
        body = f"""
  setp.{name}.f32 %p1|%p2, {a}, {b};
  selp.b32 %r3, 1, 0, %p1;
  selp.b32 %r4, 1, 0, %p2;
  st.global.v2.u32 [%rd1], {{%r3, %r4}};"""
        run(ptx_machine, body, result, threads=1)
        assert result.tolist() == [holds, not holds], (a, b)


def test_loads_of_integers_widen(ptx_machine: Machine) -> None:
    numbers = torch.tensor([-2, 0], dtype=torch.int32)
    results = torch.zeros(2, dtype=torch.int64)
    body = """
  ld.global.s32 %rd3, [%rd1];
  ld.global.u32 %rd4, [%rd1];
  st.global.v2.u64 [%rd2], {%rd3, %rd4};"""
    run(ptx_machine, body, numbers, results, threads=1)
    assert results.tolist() == [-2, 2**32 - 2]


def test_a_register_is_two_and_two_are_one(ptx_machine: Machine) -> None:
    results = torch.zeros(2, dtype=torch.int64)
    body = """
  mov.b64 %rd3, {1, 2};
  mov.b64 {%r3, %r4}, %rd3;
  mov.b64 %rd4, {%r4, %r3};
  { .reg .b16 low, high; mov.b32 {low, high}, 0x10002; cvt.u64.u16 %rd5, high; }
  add.s64 %rd4, %rd4, %rd5;
  st.global.v2.u64 [%rd1], {%rd3, %rd4};"""
    run(ptx_machine, body, results, threads=1)
    assert results.tolist() == [2 * 2**32 + 1, 2**32 + 2 + 1]


@pytest.mark.parametrize(
    ("shuffle", "expected"),
    [
        ("bfly.b32 %r3|%p1, %r1, 5, 31", [lane ^ 5 for lane in range(32)]),
        # Of four lanes each the third: what __shfl_sync(mask, value, 2, 4) is.
        ("idx.b32 %r3|%p1, %r1, 2, 0x1c1f", [lane // 4 * 4 + 2 for lane in range(32)]),
        # From beyond the last of eight lanes a lane gets nothing, and keeps its own.
        ("bfly.b32 %r3|%p1, %r1, 8, 0x1807", [lane & ~8 for lane in range(32)]),
    ],
)
def test_shuffles(ptx_machine: Machine, shuffle: str, expected: list[int]) -> None:
    results = torch.zeros(32, dtype=torch.int32)
    body = f"""
  shfl.sync.{shuffle}, -1;
  cvt.u64.u32 %rd3, %r2;
  add.s64 %rd1, %rd1, %rd3;
  st.global.u32 [%rd1], %r3;"""
    run(ptx_machine, body, results)
    assert results.tolist() == expected


def test_a_matrix_of_halves(ptx_machine: Machine) -> None:
    results = torch.zeros(32, 2, dtype=torch.int16)
    body = """
  mov.u32 %r3, buffer;
  add.s32 %r4, %r3, %r2;
  mad.lo.s32 %r5, %r1, 0x20002, 0x10000;
  st.shared.b32 [%r4], %r5;
  bar.sync 0;
  and.b32 %r6, %r1, 7;
  shl.b32 %r6, %r6, 4;
  add.s32 %r6, %r3, %r6;
  ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r7}, [%r6];
  cvt.u64.u32 %rd3, %r2;
  add.s64 %rd1, %rd1, %rd3;
  st.global.b32 [%rd1], %r7;"""
    run(ptx_machine, body, results)
    # Row k / 4, columns 2 (k % 4) and the next: of rows of eight, numbered on.
    assert results.flatten().tolist() == list(range(64))
