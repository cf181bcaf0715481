"""A warp's registers, as far as they are known."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

WARP = 32
MASK = 0xFFFF_FFFF


class Instruction(NamedTuple):
    """One line of the disassembly; ``guard`` is "@!P0" or empty."""

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]


class Lanes(NamedTuple):
    """A register's words as int64 [32], and on which lanes they are known."""

    value: np.ndarray
    known: np.ndarray


NONE = np.zeros(WARP, dtype=bool)
ALL = np.ones(WARP, dtype=bool)
UNKNOWN = Lanes(np.zeros(WARP, dtype=np.int64), NONE)


def constant(value: int) -> Lanes:
    return Lanes(np.full(WARP, value & MASK, dtype=np.int64), ALL)


ZERO = constant(0)

# They write no register.
WITHOUT_RESULT = {
    "BAR", "BSSY", "BSYNC", "NOP", "WARPSYNC", "YIELD", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL",
    "STG", "STS", "DEPBAR", "ENDCOLLECTIVE", "BREAK", "RED", "LDGDEPBAR", "BMOV",
}  # fmt: skip
_DOUBLE = {"DADD", "DMUL", "DFMA", "DMNMX"}


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P(\d|T)", text) is not None


def next_register(register: str) -> str:
    if register.endswith("Z"):
        return register
    letters = register.rstrip("0123456789")
    return f"{letters}{int(register[len(letters) :]) + 1}"


def words_written(name: str, modifiers: list[str]) -> int:
    if "128" in modifiers:
        return 4
    is_pair = name in _DOUBLE or "64" in modifiers or (name == "CS2R" and "32" not in modifiers)
    to_double = name in ("F2F", "I2F") and modifiers[:1] == ["F64"]
    return 2 if is_pair or to_double else 1


def unknown_results(name: str, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    """What an instruction writes whose meaning is not followed: predicates and a register."""
    written: dict[str, Lanes] = {}
    for text in operands:
        if is_predicate(text):
            written[text] = UNKNOWN
            continue
        if name not in WITHOUT_RESULT and re.fullmatch(r"U?R(\d+|Z)", text):
            register = text
            for _ in range(words_written(name, modifiers)):
                written[register] = UNKNOWN
                register = next_register(register)
        break
    return written


def signed(value: np.ndarray) -> np.ndarray:
    return np.where(value >= 1 << 31, value - (1 << 32), value)
