"""The native library under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from sanitized import SANITIZERS, Sanitizer

CALL = """
import ctypes, sys, torch, ndfast._C
name, right, wrong = sys.argv[1:]
numbers = torch.zeros(4, dtype=torch.int64)
planted = getattr(ctypes.CDLL(ndfast._C.__file__), name)
planted(ctypes.c_void_p(numbers.data_ptr()), ctypes.c_int64(int(right)))
print("right", flush=True)
planted(ctypes.c_void_p(numbers.data_ptr()), ctypes.c_int64(int(wrong)))
print("wrong", flush=True)
"""
# function of planted.cpp, argument that is right, argument that is wrong, what is said
PLANTED = {
    "address and undefined": [
        ("read_element", "3", "4", "heap-buffer-overflow"),
        ("read_element", "0", "-1", "heap-buffer-overflow"),
        ("add_to_largest", "0", "1", "signed integer overflow"),
    ],
    "thread": [("count_threads", "1", "0", "data race")],
}
# The quick ones; `make sanitize` runs more. Threads are the same on every instruction set.
TESTS = {"address and undefined": "native", "thread": "native_in_every_option"}


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Sanitizer, Path]:
    chosen = SANITIZERS[request.param]
    reason = chosen.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("sanitized")
    chosen.build(folder)
    return request.param, chosen, folder


@pytest.mark.long
def test_planted_errors_are_found(sanitizer: tuple[str, Sanitizer, Path]) -> None:
    name, chosen, folder = sanitizer
    for function, right, wrong, message in PLANTED[name]:
        done = chosen.run(folder, CALL, function, right, wrong)
        assert done.stdout == "right\n", done.stderr
        assert done.returncode != 0
        assert message in done.stderr


@pytest.mark.long
def test_nothing_is_found_in_the_library(sanitizer: tuple[str, Sanitizer, Path]) -> None:
    name, chosen, folder = sanitizer
    done = chosen.run_tests(folder, "test_options.py", "test_attach.py", "-k", TESTS[name])
    assert done.returncode == 0, done.stdout + done.stderr
