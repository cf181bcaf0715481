"""Follows one warp through a kernel's machine code and counts what it issues.

Integers and predicates are computed, lane by lane, from the launch's real parameters and labels:
they say where a warp goes. Floats are not: a kernel whose way depends on one is refused. Lanes that
part meet again at the lowest address that one of them has yet to reach, as the compiler lays code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Block:
    """Which warp of which launch: the threads (x, y) of a block, the grid, and its parameters.

    Attributes:
        read: gives the bytes at an address, or None where they are not known.
    """

    threads: tuple[int, int]
    grid: int
    parameters: bytes
    parameters_begin: int
    read: Callable[[int, int], bytes | None]


class Warp:
    """The state of warp ``number`` of block 0."""

    def __init__(self, block: Block, number: int) -> None:
        self.block = block
        bank = bytearray(block.parameters_begin) + block.parameters
        for place, value in enumerate((*block.threads, 1, block.grid, 1, 1)):
            bank[4 * place : 4 * place + 4] = value.to_bytes(4, "little")
        self._bank = bytes(bank)
        self._registers: dict[str, Lanes] = {}
        thread = number * WARP + np.arange(WARP)
        x, y = block.threads
        self._special = {
            "SR_TID.X": Lanes(thread % x, ALL),
            "SR_TID.Y": Lanes(thread // x % y, ALL),
            "SR_LANEID": Lanes(np.arange(WARP), ALL),
        }
        self._alive = thread < x * y

    def run(self, code: dict[int, Instruction]) -> int:
        """The instructions that it issues to its end.

        Raises:
            ValueError: a branch depends on what is not known.
        """
        places = sorted(code)
        tickets = [i.address for i in code.values() if i.opcode.startswith("ATOM")]
        self._ticket = min(tickets, default=places[-1])
        following = dict(zip(places, [*places[1:], -1], strict=True))
        at = np.where(self._alive, places[0], -1)
        issued = 0
        while (at >= 0).any():
            place = int(at[at >= 0].min())
            here = at == place
            instruction = code[place]
            issued += 1
            taken = here & self._guard(instruction, here)
            at[here] = following[place]
            target = self._step(instruction, taken)
            if target is not None:
                at[taken] = target if np.ndim(target) == 0 else target[taken]
        return issued

    def _guard(self, instruction: Instruction, here: np.ndarray) -> np.ndarray:
        if not instruction.guard:
            return ALL
        value, known = self._predicate(instruction.guard[1:])
        if known[here].all():
            return value.astype(bool)
        if instruction.opcode == "EXIT" and instruction.address > self._ticket:
            return ALL  # whether it is the last block is read from memory
        if instruction.opcode.startswith(("BRA", "BRX", "CALL", "RET", "EXIT")):
            raise ValueError(f"the way of a warp depends on a value in memory: {instruction}")
        self._forget = True
        return ALL

    _forget, _ticket = False, 0

    def _step(self, instruction: Instruction, taken: np.ndarray) -> int | np.ndarray | None:
        """Does it on the lanes that take it; where they go, None for what follows."""
        name, *modifiers = instruction.opcode.split(".")
        operands = instruction.operands
        forget, self._forget = self._forget, False
        if name == "EXIT":
            return -1
        if name == "BRA":
            return None if "DIV" in modifiers else int(operands[-1], 16)
        if name == "CALL":
            return int(operands[-1], 16)
        if name == "RET":
            value, known = self._word(operands[0].split()[0])
            if not known[taken].all():
                raise ValueError(f"the way of a warp depends on a value in memory: {instruction}")
            return value
        if name == "BRX" or name == "BRXU":
            raise ValueError(f"a jump by a table: {instruction}")
        if name in IGNORED:
            return None
        results = MEANINGS.get(name.removeprefix("U") if name.startswith("U") else name)
        written = self._unknown(name, modifiers, operands) if results is None else None
        if written is None and results is not None:
            written = results(self, modifiers, operands)
        for register, lanes in (written or {}).items():
            self._write(register, UNKNOWN if forget else lanes, taken)
        return None

    def _write(self, register: str, lanes: Lanes, taken: np.ndarray) -> None:
        if register in ("RZ", "URZ", "PT", "UPT"):
            return
        if not taken.all():
            before = self._registers.get(register, UNKNOWN)
            if register.startswith("U"):  # one for all lanes
                taken = ALL if taken.any() else NONE
            lanes = Lanes(
                np.where(taken, lanes.value, before.value), np.where(taken, lanes.known, before.known)
            )
        self._registers[register] = lanes

    # What operands mean.

    def _predicate(self, text: str) -> Lanes:
        value, known = (
            Lanes(ALL.astype(np.int64), ALL)
            if text.lstrip("!") in ("PT", "UPT")
            else self._registers.get(text.lstrip("!"), UNKNOWN)
        )
        return Lanes(1 - value, known) if text.startswith("!") else Lanes(value, known)

    def _word(self, text: str, place: int = 0) -> Lanes:
        """An operand's word; of a register pair that of ``place``."""
        text = text.split(".reuse")[0]
        if text[0] in "-~":
            value, known = self._word(text[1:], place)
            if text[0] == "~":
                return Lanes(value ^ MASK, known)
            return Lanes(-value & MASK, known)
        if found := re.fullmatch(r"(U?)R(\d+|Z)(\.64)?", text):
            if found[2] == "Z":
                return ZERO
            return self._registers.get(f"{found[1]}R{int(found[2]) + place}", UNKNOWN)
        if found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+|RZ)\]", text):
            return self._from_bank(int(found[1].replace("RZ", "0"), 16) + 4 * place)
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
            return constant(int(text, 0) if place == 0 else -(int(text, 0) < 0))
        return UNKNOWN

    def _from_bank(self, offset: int, width: int = 4) -> Lanes:
        found = self._bank[offset : offset + width]
        return constant(int.from_bytes(found, "little")) if len(found) == width else UNKNOWN

    def _both_words(self, text: str) -> Lanes:
        """A register pair's 64 bits, as Python's integers."""
        low, high = self._word(text), self._word(text, 1)
        value = low.value.astype(object) + (high.value.astype(object) << 32)
        return Lanes(value, low.known & high.known)

    def _pair(self, register: str, value: np.ndarray, known: np.ndarray) -> dict[str, Lanes]:
        low, high = ((value >> shift) & MASK for shift in (0, 32))
        return {
            register: Lanes(low.astype(np.int64), known),
            following_register(register): Lanes(high.astype(np.int64), known),
        }

    def _unknown(
        self, name: str, modifiers: list[str], operands: tuple[str, ...]
    ) -> dict[str, Lanes]:
        """What an instruction of no known meaning writes: its first register, and predicates."""
        written: dict[str, Lanes] = {}
        for text in operands:
            if re.fullmatch(r"U?P(\d|T)", text):
                written[text] = UNKNOWN
                continue
            if name not in WRITE_NOTHING and re.fullmatch(r"U?R(\d+|Z)", text):
                register = text
                for _ in range(words_written(name, modifiers)):
                    written[register] = UNKNOWN
                    register = following_register(register)
            break
        return written


def following_register(register: str) -> str:
    if register.endswith("Z"):
        return register
    letters = register.rstrip("0123456789")
    return f"{letters}{int(register[len(letters) :]) + 1}"


IGNORED = {
    "BAR", "BSSY", "BSYNC", "NOP", "WARPSYNC", "YIELD", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL",
    "STG", "STS", "DEPBAR", "ENDCOLLECTIVE", "BREAK", "RED", "LDGDEPBAR", "BMOV",
}  # fmt: skip
WRITE_NOTHING = IGNORED
_DOUBLE = {"DADD", "DMUL", "DFMA", "DMNMX"}


def words_written(name: str, modifiers: list[str]) -> int:
    if "128" in modifiers:
        return 4
    is_pair = name in _DOUBLE or "64" in modifiers or name == "CS2R" and "32" not in modifiers
    to_double = name in ("F2F", "I2F") and modifiers[:1] == ["F64"]
    return 2 if is_pair or to_double else 1


# What the instructions mean that a way can depend on.

Meaning = Callable[[Warp, list[str], tuple[str, ...]], dict[str, Lanes]]


def signed(value: np.ndarray) -> np.ndarray:
    return np.where(value >= 1 << 31, value - (1 << 32), value)


def _of_words(compute: Callable[..., np.ndarray]) -> Meaning:
    def meaning(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
        given = [warp._word(text) for text in operands[1:]]
        known = np.logical_and.reduce([ALL, *(lanes.known for lanes in given)])
        return {operands[0]: Lanes(compute(*(lanes.value for lanes in given)) & MASK, known)}

    return meaning


def _split(operands: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """Predicates behind the destination, words, predicates at the end."""
    rest = list(operands[1:])
    is_predicate = [re.fullmatch(r"!?U?P(\d|T)", text) is not None for text in rest]
    first = is_predicate.index(False)
    last = len(rest) - is_predicate[::-1].index(False)
    return rest[:first], rest[first:last], rest[last:]


def iadd3(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    carries_out, words, carries_in = _split(operands)
    lanes = [warp._word(text) for text in words]
    if "X" in modifiers:
        lanes += [warp._predicate(text) for text in carries_in]
    total = sum(one.value for one in lanes)
    known = np.logical_and.reduce([one.known for one in lanes])
    carry = total >> 32
    written = {operands[0]: Lanes(total & MASK, known)}
    if carries_out:
        written[carries_out[0]] = Lanes(np.minimum(carry, 1), known)
    if len(carries_out) > 1:
        written[carries_out[1]] = Lanes(np.maximum(carry - 1, 0), known)
    return written


def imad(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    carries_out, words, carries_in = _split(operands)
    a, b = (warp._word(text) for text in words[:2])
    factors = [one.value.astype(object) for one in (a, b)]
    if ("WIDE" in modifiers or "HI" in modifiers) and "U32" not in modifiers:
        factors = [signed(one.value).astype(object) for one in (a, b)]
    if "WIDE" in modifiers:
        c = warp._both_words(words[2])
        known = _known_product(a, b) & c.known
        total = factors[0] * factors[1] + c.value
        written = warp._pair(operands[0], total, known)
        if carries_out:
            written[carries_out[0]] = Lanes((total >> 64 != 0).astype(np.int64), known)
        return written
    c = warp._word(words[2])
    product = factors[0] * factors[1]
    total = (product >> 32 if "HI" in modifiers else product) + c.value
    known = _known_product(a, b) & c.known
    if "X" in modifiers:
        carry = warp._predicate(carries_in[0])
        total, known = total + carry.value, known & carry.known
    return {operands[0]: Lanes((total & MASK).astype(np.int64), known)}


def _known_product(a: Lanes, b: Lanes) -> np.ndarray:
    zero = (a.known & (a.value == 0)) | (b.known & (b.value == 0))
    return (a.known & b.known) | zero


def lea(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    carries_out, words, carries_in = _split(operands)
    low, base = warp._word(words[0]), warp._word(words[1])
    shift = int(words[-1], 16)
    known = low.known & base.known
    if "HI" in modifiers:
        if "SX32" in modifiers:
            value = signed(low.value).astype(object) << shift
        else:
            high = warp._word(words[2])
            value = (low.value.astype(object) + (high.value.astype(object) << 32)) << shift
            known = known & high.known
        total = ((value >> 32) & MASK) + base.value
    else:
        total = ((low.value.astype(object) << shift) & MASK) + base.value
    if "X" in modifiers:
        carry = warp._predicate(carries_in[0])
        total, known = total + carry.value, known & carry.known
    written = {operands[0]: Lanes((total & MASK).astype(np.int64), known)}
    if carries_out:
        written[carries_out[0]] = Lanes((total >> 32 != 0).astype(np.int64), known)
    return written


def shift(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    low, by, high = (warp._word(text) for text in operands[1:])
    amount = np.minimum(by.value, 64).astype(object)
    known = low.known & by.known & high.known
    wide = low.value.astype(object) + (high.value.astype(object) << 32)
    if "L" in modifiers:
        total = wide << amount if "HI" in modifiers else low.value.astype(object) << amount
        total = total >> 32 if "HI" in modifiers else total
    elif "S32" in modifiers or "S64" in modifiers:
        top = signed(high.value).astype(object)
        total = top >> amount if "HI" in modifiers else (low.value + (top << 32)) >> amount
    elif "U32" in modifiers and "HI" in modifiers:
        total = high.value.astype(object) >> amount
    else:
        total = wide >> amount
    return {operands[0]: Lanes((total & MASK).astype(np.int64), known)}


def lop3(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    is_predicate = re.fullmatch(r"U?P(\d|T)", operands[0]) is not None
    predicate, rest = (operands[0], operands[1:]) if is_predicate else (None, operands)
    a, b, c = (warp._word(text) for text in rest[1:4])
    table = int(rest[4], 16)
    total = _by_table(table, a.value, b.value, c.value) & MASK
    known = a.known & b.known & c.known
    written = {rest[0]: Lanes(total, known)}
    if predicate is not None:
        other = warp._predicate(rest[5])
        written[predicate] = Lanes(((total != 0) | (other.value != 0)).astype(np.int64), known)
    return written


def _by_table(table: int, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    total = np.zeros(WARP, dtype=np.int64)
    for row in range(8):
        if table >> row & 1:
            total |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return total


def plop3(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    a, b, c = (warp._predicate(text) for text in operands[2:5])
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


COMPARE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal,
    "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip


def isetp(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    a, b = (warp._word(text) for text in operands[2:4])
    x, y = (a.value, b.value) if "U32" in modifiers else (signed(a.value), signed(b.value))
    found = COMPARE[modifiers[0]](x, y)
    known = a.known & b.known
    if "EX" in modifiers:  # of 64 bits, whose lower half has been compared
        lower = warp._predicate(operands[5])
        strictly = modifiers[0] not in ("EQ", "NE")
        either = (found & (x != y)) if strictly else found
        low = lower.value.astype(bool)
        found = found & low if modifiers[0] == "EQ" else either | ((x == y) & low)
        known = known & lower.known
    other = warp._predicate(operands[4])
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


def select(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    a, b = (warp._word(text) for text in operands[1:3])
    by = warp._predicate(operands[3])
    first = by.value.astype(bool)
    known = by.known & np.where(first, a.known, b.known)
    return {operands[0]: Lanes(np.where(first, a.value, b.value), known)}


def least_or_most(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    a, b = (warp._word(text) for text in operands[1:3])
    x, y = (a.value, b.value) if "U32" in modifiers else (signed(a.value), signed(b.value))
    found = np.minimum(x, y) if operands[-1] in ("PT", "UPT") else np.maximum(x, y)
    return {operands[0]: Lanes(found & MASK, a.known & b.known)}


def from_constants(
    warp: Warp, modifiers: list[str], operands: tuple[str, ...]
) -> dict[str, Lanes]:
    if "U8" in modifiers:
        found = re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", operands[1])
        return {operands[0]: warp._from_bank(int(found[1], 16), 1) if found else UNKNOWN}
    written, register = {}, operands[0]
    for place in range(words_written("LDC", modifiers)):
        written[register] = warp._word(operands[1], place)
        register = following_register(register)
    return written


def special(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    """Of block 0, whose numbers are 0."""
    return {operands[0]: warp._special.get(operands[1], ZERO)}


def clear(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    if operands[1] != "SRZ":
        return warp._unknown("CS2R", modifiers, operands)
    return {operands[0]: ZERO, following_register(operands[0]): ZERO}


def half_constants(
    warp: Warp, modifiers: list[str], operands: tuple[str, ...]
) -> dict[str, Lanes]:
    """Two halves times zero plus constants: how the compiler sets a register now and then."""
    if [text.lstrip("-") for text in operands[1:3]] != ["RZ", "RZ"] or len(operands) != 5:
        return {operands[0]: UNKNOWN}
    high, low = np.array([float(text) for text in operands[3:]], dtype=np.float16).view(np.uint16)
    return {operands[0]: constant(int(high) << 16 | int(low))}


def load(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> dict[str, Lanes]:
    unknown = warp._unknown("LDG", modifiers, operands)
    found = re.fullmatch(r"(?:desc\[UR\d+\])?\[(R\d+)(?:\.64)?(?:\+(0x[0-9a-f]+))?\]", operands[-1])
    width = 8 if "64" in modifiers else 4
    if found is None or "128" in modifiers or any(m in modifiers for m in ("U8", "U16", "S8")):
        return unknown
    address = warp._both_words(found[1])
    value, known = np.zeros(WARP, dtype=object), address.known.copy()
    for lane in np.flatnonzero(known):
        data = warp.block.read(int(address.value[lane]) + int(found[2] or "0", 16), width)
        known[lane] = data is not None
        value[lane] = int.from_bytes(data or b"", "little")
    return {**warp._pair(operands[0], value, known)} if width == 8 else {
        operands[0]: Lanes(value.astype(np.int64), known)
    }


MEANINGS: dict[str, Meaning] = {
    "MOV": _of_words(lambda a, *_: a),
    "R2UR": _of_words(lambda a: a),
    "VIADD": _of_words(lambda a, b: a + b),
    "IABS": _of_words(lambda a: abs(signed(a))),
    "IADD3": iadd3,
    "IMAD": imad,
    "LEA": lea,
    "SHF": shift,
    "LOP3": lop3,
    "PLOP3": plop3,
    "ISETP": isetp,
    "SEL": select,
    "VIMNMX": least_or_most,
    "IMNMX": least_or_most,
    "LDC": from_constants,
    "S2R": special,
    "S2UR": special,
    "CS2R": clear,
    "HFMA2": half_constants,
    "LDG": load,
}
