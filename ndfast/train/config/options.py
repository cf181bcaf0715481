"""The fields of a config: what each is for, and one sentence for a value that is not taken."""

from __future__ import annotations

import math
import os
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
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a dataclass, with what `ndfast.train.config.flags` makes a flag of.

    Args:
        default: of the field.
        group: of flags, on the help page.
        text: of the help.
        choices: what it takes; of a tuple, what each of its items may be.
        metavar: what stands for a value in the help.
        may_change: a resumed run may have another value of it.
        least: the smallest number that is taken.
        above: what all that are taken are more than.
        below: what all that are taken are less than.
    """
    metadata = {
        "group": group,
        "help": text,
        "choices": choices,
        "metavar": metavar,
        "may_change": may_change,
        "least": least,
        "above": above,
        "below": below,
    }
    return field(default=default, metadata=metadata)


def check_values(config: Any) -> None:
    """Looks at every field of a config, a dataclass whose fields are of `option`.

    Home folders take the place of ``~`` in files and folders.

    Raises:
        ConfigError: a value is of another type, NaN or infinite, none of the choices, or out of
            range; names the field. Or the run is to go on and to be replaced.
    """
    for item in fields(config):
        name, value = item.name, getattr(config, item.name)
        if value is None and "None" in str(item.type):
            continue
        _check_type(name, value, str(item.type).removesuffix(" | None"))
        choices, least, above, below = (
            item.metadata[limit] for limit in ("choices", "least", "above", "below")
        )
        for each in value if isinstance(value, tuple) else (value,):
            if choices and each not in choices:
                raise ConfigError(f"{name}: got {each!r}; expected {', '.join(choices)}")
        if least is not None and value < least:
            raise ConfigError(f"{name}: got {value}; expected {least} or more")
        if above is not None and value <= above:
            raise ConfigError(f"{name}: got {value}; expected more than {above}")
        if below is not None and value >= below:
            raise ConfigError(f"{name}: got {value}; expected less than {below}")
        if item.metadata["metavar"] in ("FILE", "DIR"):
            object.__setattr__(config, name, os.path.expanduser(value))  # it is frozen
    if config.resume and config.overwrite:
        raise ConfigError("resume: got it together with overwrite; expected one of them")


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
