"""Small kernels in PTX, for the tests of the machine that runs it."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from compiled_ptx import Machine
from torch import Tensor

KERNEL = """
.version 8.0
.target sm_80
.address_size 64
.global .align 4 .b8 ticket[4];
.visible .entry kernel(.param .u64 a, .param .u64 b)
.maxntid 64
{
  .reg .pred %p<9>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<9>;
  .shared .align 16 .b8 buffer[256];
  ld.param.u64 %rd1, [a];
  ld.param.u64 %rd2, [b];
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 2;
BODY
  ret;
}
"""


def run(
    machine: Machine, body: str, *tensors: Tensor, blocks: int = 1, threads: int = 32, seed: int = 0
) -> None:
    """Runs a kernel of two pointers, by default one block of a warp.

    %rd1 and %rd2 are the pointers, %r1 is the thread's number, %r2 four times that.
    """
    a, b = [*tensors, torch.zeros(64), torch.zeros(64)][:2]
    pointers: list[Any] = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b)]
    module = machine.load(KERNEL.replace("BODY", body))
    machine.launch(module, "kernel", (blocks, 1, 1), threads, pointers, seed=seed)
