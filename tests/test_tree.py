"""The tree in docs/extending.md is the tree on disk."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FILE_OR_FOLDER = re.compile(r"[\w.]+(?:\.(?:py|h|cpp|md|yml)\b|/)")


def named_in_the_tree() -> set[Path]:
    """Every file and folder that the page's tree names, by its indentation."""
    tree = (
        (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("\n## The tree\n")[2]
    )
    found: set[Path] = set()
    parents: list[tuple[int, Path]] = [(0, Path())]
    for line in tree.splitlines():
        if not line.startswith("    "):
            if found and line:
                break
            continue
        indent = len(line) - len(line.lstrip())
        name, _, description = line.strip().partition(" ")
        while parents[-1][0] >= indent:
            parents.pop()
        parent = parents[-1][1]
        found.add(parent / name)
        beside = parent / name if name.endswith("/") else parent
        found |= {beside / other for other in _FILE_OR_FOLDER.findall(description)}
        if name.endswith("/"):
            parents.append((indent, parent / name))
    return found


def test_what_the_tree_names_is_there() -> None:
    named = named_in_the_tree()
    assert len(named) > 30
    assert sorted(str(path) for path in named if not (ROOT / path).exists()) == []


def test_what_is_there_is_named() -> None:
    named = named_in_the_tree()
    modules = {path.relative_to(ROOT) for path in (ROOT / "ndfast").glob("*.py")}
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ndfast").glob("*/__init__.py")}
    top = {Path(name) for name in ("ndfast", "csrc", "bench", "tests", "docs", "examples")}
    modules -= {Path("ndfast/__init__.py"), Path("ndfast/__main__.py")}
    assert sorted(str(path) for path in (modules | folders | top) - named) == []


def rooms() -> list[str]:
    """Of ndfast/train/, from below, as its docstring lists them."""
    told = ast.get_docstring(ast.parse((ROOT / "ndfast/train/__init__.py").read_text("utf-8")))
    assert told is not None
    return [
        name
        for line in told.splitlines()
        if line.startswith("- ")
        for name in re.findall(r"`(\w+)/?`", line.partition(":")[0])
    ]


def imported(path: Path) -> set[str]:
    """The modules that a file of ours imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    """Of a module's whole name; None for one that is not the harness's."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["ndfast", "train"] and len(parts) > 2 else None


def test_only_the_command_line_knows_the_harness() -> None:
    """Losses and adapters come without it."""
    for path in (ROOT / "ndfast").rglob("*.py"):
        if "train" not in path.relative_to(ROOT / "ndfast").parts and path.name != "cli.py":
            assert {room(module) for module in imported(path)} <= {None}, path


def test_the_rooms_of_the_harness() -> None:
    folder, names = ROOT / "ndfast" / "train", rooms()
    there = {path.name.removesuffix(".py") for path in folder.iterdir()} - {"__pycache__"}
    assert there - {"__init__"} == set(names)
    in_the_tree = {path.stem for path in named_in_the_tree() if path.parent == Path("ndfast/train")}
    assert in_the_tree == set(names) - {"errors", "interrupts", "files"}
    for own in names:
        paths = [*(folder / own).rglob("*.py")] or [folder / f"{own}.py"]
        for path in paths:
            below = set(names[: names.index(own) + 1])
            assert {room(module) for module in imported(path)} - {None} <= below, path
