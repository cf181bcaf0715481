"""Launches kernels past Triton's JIT, which takes longer to look at the arguments than a launch.

At each launch the JIT works out what the compiled code depends on, and looks the code up by that.
Of this package's kernels that is little, so they look it up themselves.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ndfast.backends.triton.workspace import refuse_in_capture

# Equal rows of student and teacher must have bitwise equal norms, for a tie belongs to the student:
# multiplications and additions are not fused. Memory bounds the kernels, so this costs no time that
# shows; and Triton's default changes in 3.10.
_ENABLE_FP_FUSION = False

_LEAST_INT32, _LARGEST_INT32 = -(2**31), 2**31 - 1


class QuickLaunch:
    """A kernel whose compiled code is found by what it depends on, with little work on the host.

    Args:
        kernel: its parameters are tensors, then integers that are not specialized, then numbers
            annotated with their type, then constexprs.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}
        # Interpreted, nothing is compiled; for AMD, code depends on the tensors' sizes as well.
        self._is_quick = isinstance(kernel, triton.JITFunction) and torch.version.hip is None

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor | None, ...],
        integers: tuple[int, ...],
        numbers: tuple[float, ...],
        constants: tuple[int, ...],
        num_warps: int,
    ) -> None:
        """Launches on the current stream of the current device.

        Raises:
            RuntimeError: a CUDA graph is being captured, and this code has not run yet.
        """
        scalars = (*integers, *numbers, *constants)
        if not self._is_quick:
            self._launch_by_jit(grid, tensors, scalars, num_warps)
            return
        try:
            driver = triton.runtime.driver.active
            device, get_current_stream = driver.get_current_device(), driver.get_current_stream
            settings = (
                triton.knobs.runtime.debug,
                triton.knobs.compilation.instrumentation_mode,
            )
        except AttributeError:  # Triton promises none of these names
            self._launch_by_jit(grid, tensors, scalars, num_warps)
            return
        # As integers they spare the launcher a call and a look by the CUDA driver for each tensor.
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        key = (
            device,
            *settings,
            num_warps,
            constants,
            *[None if tensor is None else tensor.dtype for tensor in tensors],
            *[i for i, pointer in enumerate(pointers) if pointer and pointer % 16],
        )
        if min(integers) < _LEAST_INT32 or max(integers) > _LARGEST_INT32:
            # Wider ones have other code. Nested, or True would be the number 1 of a tensor.
            key += (tuple(_LEAST_INT32 <= integer <= _LARGEST_INT32 for integer in integers),)
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*pointers, *scalars, stream=get_current_stream(device))
            return
        device = next(tensor.device for tensor in tensors if tensor is not None)
        what = f"the first launch of its kind of {self._kernel.__name__}"
        refuse_in_capture(device, what, "loads no code")
        compiled = self._launch_by_jit(grid, tensors, scalars, num_warps)
        # None where something took the place of a launch; else what another Triton gives.
        if hasattr(compiled, "__getitem__"):
            self._compiled[key] = compiled

    def _launch_by_jit(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor | None, ...],
        scalars: tuple[float, ...],
        num_warps: int,
    ) -> Any:
        return self._kernel[grid](
            *tensors, *scalars, num_warps=num_warps, enable_fp_fusion=_ENABLE_FP_FUSION
        )
