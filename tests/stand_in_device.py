"""Devices without float64 for machines that have none. Their tensors are the CPU's underneath."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# What PyTorch raises: MPS for every tensor of float64, XPU where a kernel for one is launched.
REFUSALS = {
    "mps": TypeError(
        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
        "float64. Please use float32 instead."
    ),
    "xpu": RuntimeError("Required aspect fp64 is not supported on the device"),
}
_NO_KERNEL = {"mps": (), "xpu": ("aten::zeros", "aten::empty.memory_format")}
_BETWEEN_DEVICES = ("aten::copy_", "aten::_to_copy")


class _Elsewhere(Tensor):
    """A tensor that says that it is on the device."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor, device: torch.device) -> _Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, on_cpu.stride(), dtype=on_cpu.dtype, device=device
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{op}: its device is gone")


class StandIn(TorchDispatchMode):
    """While it is entered, tensors can be on a device of the kind, "mps" or "xpu"."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.device = torch.device(kind, 0)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, kind = dict(kwargs or {}), op.name(), self.device.type
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if kwargs.get("device") is not None:
            here = kwargs["device"].type == kind
            kwargs["device"] = torch.device("cpu")
        else:
            asked = given[:1] if name == "aten::copy_" else given
            here = any(isinstance(tensor, _Elsewhere) for tensor in asked)
        mixed = any(tensor.dim() and not isinstance(tensor, _Elsewhere) for tensor in given)
        if here and mixed and name not in _BETWEEN_DEVICES:
            raise RuntimeError(f"{op}: Expected all tensors to be on the same device")
        result = op(*tree_map_only(_Elsewhere, lambda tensor: tensor.on_cpu, args), **kwargs)
        if not here or not isinstance(result, Tensor):
            return result
        wide = any(tensor.dtype == torch.float64 for tensor in (*given, result))
        if wide and name not in _NO_KERNEL[kind]:
            raise REFUSALS[kind]
        return args[0] if op._schema.is_mutable else _Elsewhere(result, self.device)
