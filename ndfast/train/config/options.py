"""The fields of a config: what each is for, and one sentence for a value that is not taken."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import field, fields
from typing import Any

from ndfast.train.errors import ConfigError

SEEDS = 2**32  # that NumPy takes


def option(
    default: Any,
    group: str,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    may_change: bool = False,
) -> Any:
    """A field of a dataclass, with what `ndfast.train.config.flags` makes a flag of.

    Args:
        default: of the field.
        group: of flags, on the help page.
        text: of the help.
        choices: what it takes; of a tuple, what each of its items may be.
        metavar: what stands for a value in the help.
        may_change: a resumed run may have another value of it.
    """
    metadata = {
        "group": group,
        "help": text,
        "choices": choices,
        "metavar": metavar,
        "may_change": may_change,
    }
    return field(default=default, metadata=metadata)


def check_values(
    config: Any,
    least: Mapping[str, float],
    below: Mapping[str, float],
    above_zero: Collection[str],
) -> None:
    """Looks at every field of a config.

    Args:
        config: a dataclass whose fields are of `option`.
        least: by name, the smallest value that is taken.
        below: by name, what all that are taken are less than.
        above_zero: names of fields that take more than 0.

    Raises:
        ConfigError: a value is of another type, NaN or infinite, none of the choices, or out of
            range; names the field.
    """
    for item in fields(config):
        name, value = item.name, getattr(config, item.name)
        if value is None and "None" in str(item.type):
            continue
        _check_type(name, value, str(item.type).removesuffix(" | None"))
        choices = item.metadata["choices"]
        for each in value if isinstance(value, tuple) else (value,):
            if choices and each not in choices:
                raise ConfigError(f"{name}: got {each!r}; expected {', '.join(choices)}")
        if name in least and value < least[name]:
            raise ConfigError(f"{name}: got {value}; expected {least[name]} or more")
        if name in above_zero and value <= 0:
            raise ConfigError(f"{name}: got {value}; expected more than 0")
        if name in below and value >= below[name]:
            raise ConfigError(f"{name}: got {value}; expected less than {below[name]}")


def expand_paths(config: Any) -> None:
    """Puts home folders in place of ``~`` in those fields of a config that are files or folders."""
    for item in fields(config):
        value = getattr(config, item.name)
        if item.metadata["metavar"] in ("FILE", "DIR") and value is not None:
            object.__setattr__(config, item.name, os.path.expanduser(value))  # it is frozen


def _check_type(name: str, value: Any, kind: str) -> None:
    if kind.startswith("tuple"):
        of = kind.removeprefix("tuple[").removesuffix(", ...]")
        fits = isinstance(value, tuple) and all(_is(each, of) for each in value)
        fits = fits and (of != "int" or all(each > 0 for each in value))
    else:
        fits = _is(value, kind)
    if not fits:
        raise ConfigError(f"{name}: got {value!r}; expected {_WORDS[kind]}")
    if kind == "float" and not math.isfinite(value):
        raise ConfigError(f"{name}: got {value}; expected a finite number")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "bool")


_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}
_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "tuple[int, ...]": "integers above 0",
    "tuple[str, ...]": "strings",
}
