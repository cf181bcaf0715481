"""The user's own shape: what `--shape 4096x768 --dtype bfloat16` asks for."""

from __future__ import annotations

import re

import torch

from bench.cases import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def own_cases(
    device: str, shapes: list[tuple[int, int, int]], dtype: torch.dtype = torch.float32
) -> list[Case]:
    """`ndfast.nd_loss` and its backward, for each of the shapes (N, D, K)."""
    return [Case(device, N, D, dtype, K=K) for N, D, K in shapes]


def read_options(
    shapes: list[str] | None, dtype: str | None, full: bool, telling: bool
) -> tuple[list[tuple[int, int, int]], torch.dtype]:
    """What the options ask for.

    Args:
        shapes: each --shape as it was given, None without one.
        dtype: --dtype as it was given, None without it.
        full: whether there is --full.
        telling: whether there is --telling.

    Returns:
        The shapes (N, D, K), each once; none without --shape. The dtype of student and teacher.

    Raises:
        ValueError: a sentence that names the option, what it got and what was expected.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not shapes:
        if dtype is not None:
            raise ValueError(f"--dtype: got {dtype!r} without --shape, expected --shape beside it")
        return [], DTYPES["float32"]
    for name, given in (("--full", full), ("--telling", telling)):
        if given:
            raise ValueError(f"--shape and {name}: got both, expected one of them")
    return [*dict.fromkeys(map(_shape, shapes))], DTYPES[dtype or "float32"]


def _shape(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
    if found is None:
        raise ValueError(
            f"--shape: got {text!r}, expected NxD or NxDxK, rows, features and classes of at "
            "least 1, as in 4096x768"
        )
    N, D, K = (int(number) for number in found.groups(default="1000"))
    return N, D, K
