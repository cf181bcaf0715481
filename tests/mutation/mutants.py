"""Mutants of a source: one operator, constant, name or term changed at a time.

Python and C++ write arithmetic alike, and ruff and clang-format set spaces around what is binary;
a tool for one of them would leave the other out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_NOT_CODE = r'"""[\s\S]*?"""|"[^"\n]*"|//[^\n]*|#[^\n]*| \| None|def \w+\([^)]*\)[^:]*:'
_BINARY = r"(?<= )(?:==|!=|<=|>=|&&|\|\||and|or|is not|is|[-+*/<>&|])(?= )"
_CODE = re.compile(
    rf"(?P<skip>{_NOT_CODE})|(?P<binary>{_BINARY})|(?P<unary>(?<![\w)\]])[-!~](?=[\w(]))"
    r"|(?P<call>\w\((?=[^()]*[,(]))|(?P<name>(?<!T )\b[A-Za-z_]\w*\b(?! =|=|:))"
    r"|(?P<number>\b\d[\w.]*)"
)

_OTHER_BINARY = {
    "==": ["!="], "!=": ["=="], "<": ["<=", ">"], "<=": ["<", ">"], ">": [">=", "<"],
    ">=": [">", "<"], "&&": ["||"], "||": ["&&"], "&": ["|"], "|": ["&"], "and": ["or"],
    "or": ["and"], "is": ["is not"], "is not": ["is"], "+": ["-"], "-": ["+"], "*": ["/"],
    "/": ["*"],
}  # fmt: skip
_DROPPED = ("&&", "||", "&", "|", "and", "or", "+", "-", "*", "/")
_OTHER_NUMBER = {"0": ["1"], "1": ["0", "2"], "2": ["1", "3"], "3": ["2"], "8": ["4"]}
_OTHER_NAME = {
    "student_norm": ["teacher_norm"], "teacher_norm": ["student_norm"],
    "centre_norm": ["student_norm"], "n_s": ["n_t"], "n_t": ["n_s"], "n_c": ["m"], "m": ["n_c"],
    "by_m": ["by_n_c"], "by_n_c": ["by_m"], "eps": ["0"], "target": ["target_b"],
    "target_b": ["target"], "alpha": ["beta"], "beta": ["alpha"], "gamma": ["delta"],
    "delta": ["gamma"], "MEAN": ["SUM"], "NONE": ["SUM"], "zeros_like": ["ones_like"],
    "clamp_min": ["clamp_max"],
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A source with one change, and the changed line."""

    source: str
    line: int
    before: str
    after: str


def mutants_of(source: str) -> Iterator[Mutant]:
    """Every mutant of `source`."""
    for match in _CODE.finditer(source):
        start, end, text = match.start(), match.end(), match[0]
        kind = match.lastgroup
        if kind == "binary":
            for other in _OTHER_BINARY[text]:
                yield _mutant(source, start, end, other)
            if text in _DROPPED:
                yield _mutant(source, start - 1, _operand_end(source, end + 1), "")
        elif kind == "unary":
            yield _mutant(source, start, end, "")
        elif kind == "number":
            for other in _OTHER_NUMBER.get(text, ()):
                yield _mutant(source, start, end, other)
        elif kind == "name":
            for other in _OTHER_NAME.get(text, ()):
                yield _mutant(source, start, end, other)
        elif kind == "call":
            arguments = list(_arguments(source, end))
            for (a, b), (c, d) in pairwise(arguments):
                yield _mutant(source, a, d, source[c:d] + source[b:c] + source[a:b])


def _mutant(source: str, start: int, end: int, text: str) -> Mutant:
    mutated = source[:start] + text + source[end:]
    line = source.count("\n", 0, start)
    before, after = (x.splitlines()[line].strip() for x in (source, mutated))
    return Mutant(mutated, line + 1, before, after)


def _operand_end(source: str, start: int) -> int:
    """Where the term that begins at `start` ends: a name, number or call, and what is called on."""
    end = re.compile(r"[-!~]*").match(source, start).end()
    while match := re.compile(r"[\w.]+|::").match(source, end) or _brackets(source, end):
        end = match if isinstance(match, int) else match.end()
    return end


def _brackets(source: str, start: int) -> int | None:
    if start >= len(source) or source[start] not in "([":
        return None
    depth = 0
    for at in range(start, len(source)):
        depth += (source[at] in "([{") - (source[at] in ")]}")
        if depth == 0:
            return at + 1
    raise ValueError(f"unbalanced brackets at {start}")


def _arguments(source: str, start: int) -> Iterator[tuple[int, int]]:
    """Where each argument of the call whose bracket opens before `start` begins and ends."""
    end = _brackets(source, start - 1)
    assert end is not None
    depth, first = 0, start
    for at in range(start, end):
        if depth == 0 and (source[at] == "," or at == end - 1):
            stripped = source[first:at].strip()
            if stripped:
                begin = source.index(stripped, first)
                yield begin, begin + len(stripped)
            first = at + 1
        depth += (source[at] in "([{") - (source[at] in ")]}")
