"""KD++'s form of class means: a dict from the class index as a string to a list of D floats."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

_CLASS_INDEX = re.compile("0|[1-9][0-9]{0,8}")  # int() takes "-1", "00" and " 1" too


def stack_class_dict(name: str, class_dict: Mapping[str, Any]) -> tuple[list[int], np.ndarray]:
    """The classes of the dict, in its order, and their means, float32 [len(classes), D].

    Args:
        name: what messages call the dict.
        class_dict: from class index to list of D numbers, or to an array or a tensor [D]; keys in
            any order, with gaps or without.

    Raises:
        TypeError: it holds something else; names the class.
        ValueError: it is empty, a key is no class index, or the lists are not D finite float32
            numbers each; names the class, and the column where that applies.
    """
    D, rows = None, []
    for key, values in class_dict.items():
        if not (isinstance(key, str) and _CLASS_INDEX.fullmatch(key)):
            raise ValueError(
                f'{name}: key {reprlib.repr(key)} is no class index; expected "0", "1", ...'
            )
        if hasattr(values, "tolist"):
            values = values.tolist()
        if not isinstance(values, (list, tuple)):
            raise TypeError(
                f"{name}: class {key} holds {type(values).__name__}; expected a list of floats"
            )
        D = len(values) if D is None else D
        if len(values) != D or D == 0:
            raise ValueError(
                f"{name}: class {key} holds {len(values)} values; expected {D or '1 or more'}"
            )
        _check_numbers(f"{name}: class {key}", values)
        rows.append(values)
    if D is None:
        raise ValueError(f"{name}: holds no class")
    classes = [int(key) for key in class_dict]
    means = np.array(rows, dtype=np.float64)
    check_finite(name, means, classes, np.float32)
    return classes, means.astype(np.float32)


def check_finite(name: str, means: np.ndarray, classes: Sequence[int], dtype: Any) -> None:
    """Raises ValueError, naming class and column, where a mean is not a finite ``dtype``."""
    bad = ~(np.abs(means) <= np.finfo(dtype).max)  # a NaN compares false
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"{name}: class {classes[row]}, column {column} is {means[row, column]}; expected a "
            f"finite {np.dtype(dtype)}"
        )


def _check_numbers(name: str, values: Sequence[Any]) -> None:
    def is_number(kind: type) -> bool:
        return issubclass(kind, Real) and kind is not bool

    if not all(map(is_number, set(map(type, values)))):  # a look at each type, not at each value
        column = next(i for i, value in enumerate(values) if not is_number(type(value)))
        raise ValueError(
            f"{name}, column {column} is {reprlib.repr(values[column])}; expected a number"
        )
