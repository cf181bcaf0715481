"""What a reader sees of a report: in the terminal, in a browser."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console, Group


def in_terminal(table: Group, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, (int, float)) else []


def not_held(shown: str, results: dict[str, Any]) -> list[str]:
    """The figures that are shown and are not in the results."""
    figures = re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?", shown)
    assert len(figures) > 20
    formats: list[Callable[[float], str]] = [
        "{:,}".format,
        "{:,.0f}".format,
        "{:g}".format,
        "{:.2f}".format,
        "{:.3f}".format,
        "{:.4f}".format,
        "{:.1e}".format,
        lambda value: f"{100 * value:.2f}",
    ]
    held = {format(number) for number in [1.0, *numbers(results)] for format in formats}
    return [figure for figure in figures if figure not in held]


def of_a_step(results: dict[str, Any]) -> dict[str, Any]:
    """The time of a run's step and the shares of its parts, of which the ND loss is in forward."""
    parts = results["parts_ms"]
    names = ("data", "teacher", "forward", "backward", "optimizer")
    step = sum(parts[name] for name in names)
    return {"step": step, "shares": {name: time / step for name, time in parts.items()}}


class Page(HTMLParser):
    """A page's elements, with every tag closed in order; its text; its pictures, decoded."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self) -> list[str]:
        prefix = "data:image/svg+xml;base64,"
        sources = [attributes["src"] or "" for attributes in self.find("img")]
        assert all(source.startswith(prefix) for source in sources)
        return [b64decode(source.removeprefix(prefix)).decode() for source in sources]
