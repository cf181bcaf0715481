"""Derivatives that the loss does not have: each is refused in a sentence, never a wrong number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from torch._C._functorch import (
        TransformType,
        get_interpreter_stack,
        get_unwrapped,
        maybe_get_level,
    )
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
except ImportError:  # PyTorch promises none of them; without one it refuses by itself, in its words
    CAN_ASK = False
else:
    CAN_ASK = True

_PLAIN = "ndfast.backends.reference.row_loss, the same loss of each row in plain PyTorch"
DOUBLE_BACKWARD = (
    "nd_loss: its gradient cannot be differentiated again (double backward); expected a single "
    f"backward, or {_PLAIN}"
)
FORWARD_MODE = (
    "nd_loss: forward-mode AD (jvp, jacfwd) is not supported; expected reverse mode (vjp, jacrev), "
    f"or {_PLAIN}"
)
_COMPILED_GRADIENT = (
    "nd_loss: got a gradient by torch.func inside of torch.compile; expected that of the compiled "
    "function, torch.func.grad(torch.compile(f)), or loss.backward()"
)
_FUNCTIONALIZE = (
    "nd_loss: torch.func.functionalize is not supported; leave it out, for nd_loss writes into no "
    "tensor, and make_fx and torch.export take it as it is"
)


def refuse_tangents(values: Iterable[Any]) -> None:
    """Raises where forward-mode AD would go on without the loss's tangent, which is a wrong number.

    Not every way to the ops has PyTorch raise by itself, and what the loss takes for a constant may
    have a tangent too.
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    transform: Any = None
    if CAN_ASK and not torch.compiler.is_compiling() and get_interpreter_stack():
        transform = retrieve_current_functorch_interpreter()
    if transform is None or transform.key() == TransformType.Jvp:
        for tensor in tensors:
            if forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError(FORWARD_MODE)
    if transform is not None:  # those around it
        level = transform.level()
        with transform.lower():
            refuse_tangents(
                get_unwrapped(tensor) if maybe_get_level(tensor) == level else tensor
                for tensor in tensors
            )


def refuse_transforms() -> None:
    """Raises under those of torch.func that cannot have the ops' autograd."""
    if not CAN_ASK:
        return
    if torch.compiler.is_compiling():
        if retrieve_current_functorch_interpreter().key() == TransformType.Grad:
            raise NotImplementedError(_COMPILED_GRADIENT)
    elif any(of.key() == TransformType.Functionalize for of in get_interpreter_stack() or ()):
        raise NotImplementedError(_FUNCTIONALIZE)
