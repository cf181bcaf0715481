"""A table of strings, which terminal and page show alike, and how a number becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

NONE = "–"


class Grid(NamedTuple):
    """A table of strings; the first cell of a row names it."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str


def for_terminal(grids: list[Grid]) -> Group:
    """The tables, one under the other."""
    tables = []
    for grid in grids:
        # Text: a name in square brackets is no markup.
        table = Table(
            title=Text(grid.title),
            caption=Text(grid.caption),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
        )
        for column, heading in enumerate(grid.head):
            table.add_column(Text(heading), justify="right" if column else "left")
        for row in grid.rows:
            table.add_row(*map(Text, row), end_section=row[0] == "teacher")
        tables.append(table)
    return Group(*tables)


def percent(share: float | None) -> str:
    """A share in per cent, without the sign."""
    return fixed(None if share is None else 100 * share, 2)


def fixed(value: float | None, decimals: int) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else f"{value:.{decimals}f}"


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural but for 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
