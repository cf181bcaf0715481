"""Launches a kernel by Triton's JIT and by QuickLaunch, and prints what each launched.

`tests/test_triton_quick_launch.py` runs this as a program, because Triton decides at import whether
kernels are interpreted. stdout: a JSON object. Its "calls" has by name what QuickLaunch launched in
a CUDA-graph capture at first, or the error that it raised, and whether it asked the JIT; what the
JIT launched; what QuickLaunch launched the first time outside a capture; and what then in one, and
whether it asked the JIT. "without" has by a name of Triton's, which QuickLaunch then did not find,
what it launched in two calls, and what the JIT did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from made_up_gpu import Driver
from triton.runtime.jit import JITFunction

from ndfast.backends.triton import quick_launch as quick_launch_module
from ndfast.backends.triton import workspace
from ndfast.backends.triton.forward_kernel import forward_kernel
from ndfast.backends.triton.quick_launch import QuickLaunch

N, D, K = 6, 64, 10
WITHOUT = (
    "driver", "active", "get_current_device", "get_current_stream", "knobs", "debug",
    "instrumentation_mode",
)  # fmt: skip


def call(
    integer: int = N, num_coefficients: int = 0, num_warps: int = 4, **tensors: torch.Tensor | None
) -> tuple[Any, ...]:
    """The arguments of a launch: grid, tensors, integers, numbers, constants, num_warps."""
    given: dict[str, Any] = {"teacher_norms": None, **tensors}
    for name in ("student", "teacher", "class_means"):
        given.setdefault(name, torch.zeros(N, D))
    names = ("student", "teacher", "teacher_norms", "class_means")
    labels_and_weights = (None, None, None, None)
    outputs = (torch.zeros(N), torch.zeros(()), torch.zeros(num_coefficients, N), None, None, None)
    return (
        (3, 2, 1),
        (*(given[name] for name in names), *labels_and_weights, *outputs),
        (integer,) * 6,
        (1.0, 0.5, 1e-8, 2.0, 2.0),
        (D, 16, 0, num_coefficients, 8, 64),
        num_warps,
    )


def misaligned() -> torch.Tensor:
    return torch.zeros(N * D + 1)[1:].view(N, D)


def narrow() -> torch.Tensor:
    return torch.zeros(N, D, dtype=torch.bfloat16)


CALLS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "plain": call,
    "other addresses": call,
    "one": lambda: call(integer=1),
    "sixteen": lambda: call(integer=16),
    "largest int32": lambda: call(integer=2**31 - 1),
    "wide": lambda: call(integer=2**31),
    "negative": lambda: call(integer=-(2**31)),
    "wide negative": lambda: call(integer=-(2**31) - 1),
    "misaligned student": lambda: call(student=misaligned()),
    "misaligned class means": lambda: call(class_means=misaligned()),
    "narrow student": lambda: call(student=narrow()),
    "narrow teacher": lambda: call(teacher=narrow()),
    "no teacher": lambda: call(teacher=None),
    "teacher norms": lambda: call(teacher=None, teacher_norms=torch.zeros(N)),
    "another constant": lambda: call(num_coefficients=2),
    "other warps": lambda: call(num_warps=2),
    "another device": call,
    "another stream": call,
    "debug": call,
    "instrumented": call,
}


def triton_without(name: str) -> SimpleNamespace:
    """As much of Triton as a call of QuickLaunch asks for, without one of the names."""

    def having(**parts: Any) -> SimpleNamespace:
        return SimpleNamespace(**{own: part for own, part in parts.items() if own != name})

    driver, knobs = triton.runtime.driver.active, triton.knobs
    active = having(
        get_current_device=driver.get_current_device, get_current_stream=driver.get_current_stream
    )
    debug, mode = knobs.runtime.debug, knobs.compilation.instrumentation_mode
    return having(
        runtime=having(driver=having(active=active)),
        knobs=having(runtime=having(debug=debug), compilation=having(instrumentation_mode=mode)),
    )


def main() -> None:
    driver = Driver(capability=90)
    triton.runtime.driver.set_active(driver)
    settings: dict[str, Any] = {
        "another device": patch.object(driver, "device", 91),
        "another stream": patch.object(driver, "stream", 7),
        "debug": patch.object(triton.knobs.runtime, "debug", True),
        "instrumented": patch.object(triton.knobs.compilation, "instrumentation_mode", "consan"),
    }
    hooked: list[str] = []
    triton.knobs.runtime.launch_enter_hook.add(lambda data: hooked.append(data.get()["name"]))
    triton.knobs.runtime.launch_exit_hook.add(lambda data: hooked.append("end"))

    def jit(grid: Any, *arguments: Any) -> None:
        *arguments, num_warps = arguments
        options = {"num_warps": num_warps, "enable_fp_fusion": False}
        forward_kernel[grid](*chain(*arguments), **options)

    def launched(launch: Callable[..., None], arguments: tuple[Any, ...]) -> list[Any]:
        launch(*arguments)
        seen = [*driver.launches, *hooked]
        driver.launches.clear()
        hooked.clear()
        return seen

    quick_launch = QuickLaunch(forward_kernel)

    def captured(arguments: tuple[Any, ...]) -> tuple[list[Any] | str, bool]:
        """What is launched in a capture, or the error; and whether the JIT is asked."""
        jit_run = patch.object(JITFunction, "run", autospec=True, side_effect=JITFunction.run)
        with patch.object(workspace, "is_capturing", return_value=True), jit_run as run:
            try:
                return launched(quick_launch, arguments), run.called
            except RuntimeError as error:
                assert not driver.launches
                return str(error), run.called

    found = {}
    for name, make in CALLS.items():
        arguments = make()
        with settings.get(name, nullcontext()):
            at_first = captured(arguments)
            launches = [launched(launch, arguments) for launch in (jit, quick_launch)]
            found[name] = [*at_first, *launches, *captured(arguments)]
    without = {}
    arguments = call()
    for name in WITHOUT:
        quick_launch = QuickLaunch(forward_kernel)
        launched(quick_launch, arguments)
        with patch.object(quick_launch_module, "triton", triton_without(name)):
            found_none = [launched(quick_launch, arguments) for _ in range(2)]
        without[name] = [*found_none, launched(jit, arguments)]
    print(json.dumps({"calls": found, "without": without}))


if __name__ == "__main__":
    main()
