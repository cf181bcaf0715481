"""Comparisons, predicates and what is chosen by them; as meanings.py, which lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from issue_slots.lanes import ALL, MASK, WARP, Lanes, is_predicate, signed

if TYPE_CHECKING:
    from issue_slots.warp import Warp

Results = dict[str, Lanes]


COMPARE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal,
    "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip


def isetp(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    a, b = (warp.word(text) for text in operands[2:4])
    x, y = (a.value, b.value) if "U32" in modifiers else (signed(a.value), signed(b.value))
    found = COMPARE[modifiers[0]](x, y)
    known = a.known & b.known
    if "EX" in modifiers:  # of 64 bits, whose lower half has been compared
        lower = warp.predicate(operands[5])
        strictly = modifiers[0] not in ("EQ", "NE")
        either = (found & (x != y)) if strictly else found
        low = lower.value.astype(bool)
        found = found & low if modifiers[0] == "EQ" else either | ((x == y) & low)
        known = known & lower.known
    other = warp.predicate(operands[4])
    truth = other.value.astype(bool)
    if "AND" in modifiers:
        both = found & truth
        known = (known & other.known) | (known & ~found) | (other.known & ~truth)
    else:
        both = found | truth
        known = (known & other.known) | (known & found) | (other.known & truth)
    written = {operands[0]: Lanes(both.astype(np.int64), known)}
    if operands[1] not in ("PT", "UPT"):
        opposite = ~found & truth if "AND" in modifiers else ~found | truth
        written[operands[1]] = Lanes(opposite.astype(np.int64), known)
    return written


def select(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    a, b = (warp.word(text) for text in operands[1:3])
    by = warp.predicate(operands[3])
    first = by.value.astype(bool)
    known = by.known & np.where(first, a.known, b.known)
    return {operands[0]: Lanes(np.where(first, a.value, b.value), known)}


def _by_table(table: int, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    total = np.zeros(WARP, dtype=np.int64)
    for row in range(8):
        if table >> row & 1:
            total |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return total


def lop3(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    predicate, rest = None, operands
    if is_predicate(operands[0]):
        predicate, *rest = operands
    a, b, c = (warp.word(text) for text in rest[1:4])
    table = int(rest[4], 16)
    total = _by_table(table, a.value, b.value, c.value) & MASK
    known = a.known & b.known & c.known
    written = {rest[0]: Lanes(total, known)}
    if predicate is not None:
        other = warp.predicate(rest[5])
        written[predicate] = Lanes(((total != 0) | (other.value != 0)).astype(np.int64), known)
    return written


def plop3(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    a, b, c = (warp.predicate(text) for text in operands[2:5])
    written = {}
    for register, text in zip(operands[:2], operands[5:7], strict=True):
        found = _by_table(int(text, 16), -a.value, -b.value, -c.value)
        # An input that the table does not ask for need not be known.
        known = ALL.copy()
        for lanes, bit in ((a, 4), (b, 2), (c, 1)):
            table = int(text, 16)
            asked = any((table >> row ^ table >> (row ^ bit)) & 1 for row in range(8))
            known &= lanes.known | (not asked)
        written[register] = Lanes(found & 1, known)
    return written


def pack_predicates(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    value, known = warp.word(operands[2])
    mask = int(operands[3], 16)
    value, known = value & ~mask, known.copy()
    for number in range(7):
        if mask >> number & 1:
            bit = warp.predicate(f"P{number}")
            value, known = value | bit.value << number, known & bit.known
    return {operands[0]: Lanes(value, known)}


def unpack_predicates(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    value, known = warp.word(operands[1])
    mask = int(operands[2], 16)
    return {
        f"P{number}": Lanes(value >> number & 1, known) for number in range(7) if mask >> number & 1
    }
