"""QuickLaunch launches what Triton's JIT would, whatever the JIT compiles a kernel anew for."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="the Triton backend needs triton")

from made_up_gpu import output_of

# Calls that the JIT runs the same code for, though their addresses or integers differ.
OF_THE_PLAIN_CODE = {
    "plain", "other addresses", "one", "sixteen", "largest int32", "negative", "another stream",
}  # fmt: skip
OF_64_BIT_CODE = {"wide", "wide negative"}
# Calls whose code an earlier one has run: all but the first of each line above.
KNOWN = (OF_THE_PLAIN_CODE | OF_64_BIT_CODE) - {"plain", "wide"}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """What record_launches.py saw."""
    return output_of("record_launches.py")


@pytest.fixture
def found(recorded: dict[str, Any]) -> dict[str, Any]:
    """By the call's name."""
    return recorded["calls"]


def test_the_same_is_launched_as_by_the_jit(found: dict[str, Any]) -> None:
    for name, (_, _, by_jit, first, captured, _) in found.items():
        assert first == by_jit, name
        assert captured == by_jit, name


def test_the_jit_is_asked_once(found: dict[str, Any]) -> None:
    assert not [name for name, (*_, asked) in found.items() if asked]


def test_the_first_launch_in_a_capture_is_refused(found: dict[str, Any]) -> None:
    said = (
        "nd_loss: backend 'triton': got the first launch of its kind of forward_kernel in a "
        "CUDA-graph capture; expected the same call once before it, for a capture loads no code"
    )
    for name, (in_capture, asked_the_jit, by_jit, *_) in found.items():
        assert not asked_the_jit, name  # or a module would be loaded
        assert in_capture == (by_jit if name in KNOWN else said), name


def test_the_calls_differ_where_the_jit_compiles_anew(found: dict[str, Any]) -> None:
    codes: dict[str, set[str]] = {}
    for name, (_, _, ((_, _, function, _), *_), *_) in found.items():
        codes.setdefault(function, set()).add(name)
    assert [names for names in codes.values() if len(names) > 1] == [
        OF_THE_PLAIN_CODE, OF_64_BIT_CODE
    ]  # fmt: skip


def test_arguments_arrive_in_order_and_hooks_are_called(found: dict[str, Any]) -> None:
    *_, ((grid, stream, _, arguments), *hooked), _ = found["another stream"]
    assert grid == [3, 2, 1]
    assert stream == 7
    assert sum(argument is not None for argument in arguments[:14]) == 6  # rows and outputs
    assert arguments[14:] == [*[6] * 6, 1.0, 0.5, 1e-8, 2.0, 2.0, 64, 16, 0, 0, 8, 64]
    assert hooked == ["forward_kernel", "end"]


def test_without_a_name_of_tritons_the_jit_launches_the_same(recorded: dict[str, Any]) -> None:
    assert len(recorded["without"]) == 7
    for name, (first, second, by_jit) in recorded["without"].items():
        assert first == second == by_jit, name
