"""Whether the config of a run that is to go on is the one that it began with."""

from __future__ import annotations

from dataclasses import asdict, fields
from os.path import relpath
from typing import Any

from ndfast.train.errors import ConfigError


def check_same_run(config: Any, before: dict[str, Any]) -> None:
    """Raises ConfigError if ``before``, the config of the run to resume, is of another training.

    ``config`` is a `TrainConfig`, or another dataclass with the same metadata.
    """
    now = asdict(config)
    for item in fields(config):
        if item.metadata["may_change"] or item.name == "out":
            continue
        was = before.get(item.name)
        was = tuple(was) if isinstance(was, list) else was
        is_file = item.metadata.get("metavar") == "FILE"
        if was != now[item.name] and not (is_file and _has_moved_along(item.name, before, now)):
            flag = item.name.replace("_", "-")
            hint = f", --{flag if was else f'no-{flag}'}" if isinstance(was, bool) else ""
            raise ConfigError(
                f"{item.name}: got {now[item.name]!r}, but the run in {config.out} was started "
                f"with {was!r}; a resumed run takes the same{hint}"
            )


def _has_moved_along(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a field's file lies where it lay as seen from the run's folder."""
    places = []
    for config in (before, now):
        file = config.get(name)
        if file is None:
            return False
        places.append(relpath(file, config["out"]))
    return places[0] == places[1]
