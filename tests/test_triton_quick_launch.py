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


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What record_launches.py saw, by the call's name."""
    return output_of("record_launches.py")


def test_the_same_is_launched_as_by_the_jit(found: dict[str, Any]) -> None:
    for name, (by_jit, first, second, _) in found.items():
        assert first == by_jit, name
        assert second == by_jit, name


def test_the_jit_is_asked_once(found: dict[str, Any]) -> None:
    assert {name for name, (*_, asked) in found.items() if asked} == OF_64_BIT_CODE


def test_the_calls_differ_where_the_jit_compiles_anew(found: dict[str, Any]) -> None:
    codes: dict[str, set[str]] = {}
    for name, (((_, _, function, _), *_), *_) in found.items():
        codes.setdefault(function, set()).add(name)
    assert [names for names in codes.values() if len(names) > 1] == [
        OF_THE_PLAIN_CODE, OF_64_BIT_CODE
    ]  # fmt: skip


def test_arguments_arrive_in_order_and_hooks_are_called(found: dict[str, Any]) -> None:
    _, _, ((grid, stream, _, arguments), *hooked), _ = found["another stream"]
    assert grid == [3, 2, 1]
    assert stream == 7
    assert sum(argument is not None for argument in arguments[:14]) == 6  # rows and outputs
    assert arguments[14:] == [*[6] * 6, 1.0, 0.5, 1e-8, 64, 16, 0, 0, 8, 64]
    assert hooked == ["forward_kernel", "end"]
