"""The command line of a config: a flag for each field of its dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from typing import Any

_KINDS = {"str": str, "int": int, "float": float}


def add_flags(
    parser: argparse.ArgumentParser,
    config: type,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    help_texts: Mapping[str, str] | None = None,
) -> None:
    """Adds a flag for each field of ``config``.

    Args:
        parser: gets the flags, grouped by the fields' metadata "group".
        config: a dataclass whose fields have a default and the metadata "help"; "group",
            "choices" and "metavar" are optional.
        only: the fields to take; by default all.
        skip: fields to leave out.
        help_texts: by field, help in place of its own and of its default.
    """
    groups: dict[str, Any] = {}
    for item in fields(config):
        if item.name in skip or (only is not None and item.name not in only):
            continue
        title = item.metadata.get("group", "options")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(
            f"--{item.name.replace('_', '-')}",
            dest=item.name,
            default=argparse.SUPPRESS,  # only what was given overrides a recipe
            help=help_texts[item.name] if help_texts and item.name in help_texts else _help(item),
            **_kind(item),
        )


def given_flags(given: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of ``config`` that the command line set."""
    chosen = {item.name: vars(given)[item.name] for item in fields(config) if item.name in given}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()
    }


def _kind(item: Field) -> dict[str, Any]:
    name = str(item.type).removesuffix(" | None")
    metavar = item.metadata.get("metavar")
    if name == "bool":
        return {"action": argparse.BooleanOptionalAction}
    if name.startswith("tuple"):
        kind = _KINDS[name.removeprefix("tuple[").partition(",")[0].removesuffix("]")]
        return {"type": kind, "nargs": "*", "metavar": metavar}
    choices = item.metadata.get("choices")
    if choices:
        return {"choices": choices, "metavar": metavar}
    return {"type": _KINDS[name], "metavar": metavar or ("X" if name == "float" else "N")}


def _help(item: Field) -> str:
    text = item.metadata["help"].replace("%", "%%")
    if "(default" in text or item.default is False or item.default in (None, ""):
        return text
    shown = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
    return f"{text} (default: {shown})".strip()
