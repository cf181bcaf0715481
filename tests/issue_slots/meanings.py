"""What the instructions mean that a warp's way can depend on; of all others results are unknown.

Each is called with the warp, the modifiers behind the opcode and the operands, and gives what it
writes, by register and predicate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from issue_slots.lanes import (
    ALL,
    MASK,
    UNKNOWN,
    WARP,
    ZERO,
    Lanes,
    constant,
    is_predicate,
    next_register,
    signed,
    unknown_results,
    words_written,
)
from issue_slots.predicates import isetp, lop3, pack_predicates, plop3, select, unpack_predicates

if TYPE_CHECKING:
    from issue_slots.warp import Warp

Results = dict[str, Lanes]
Meaning = Callable[["Warp", list[str], tuple[str, ...]], Results]


def pair(register: str, value: np.ndarray, known: np.ndarray) -> Results:
    low, high = ((value >> shift) & MASK for shift in (0, 32))
    return {
        register: Lanes(low.astype(np.int64), known),
        next_register(register): Lanes(high.astype(np.int64), known),
    }


def _of_words(compute: Callable[..., np.ndarray]) -> Meaning:
    def meaning(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
        given = [warp.word(text) for text in operands[1:]]
        known = np.logical_and.reduce([ALL, *(lanes.known for lanes in given)])
        return {operands[0]: Lanes(compute(*(lanes.value for lanes in given)) & MASK, known)}

    return meaning


def _split(operands: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """Predicates behind the destination, words, predicates at the end."""
    rest = list(operands[1:])
    of_words = [not is_predicate(text) for text in rest]
    first, last = of_words.index(True), len(rest) - of_words[::-1].index(True)
    return rest[:first], rest[first:last], rest[last:]


def iadd3(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    carries_out, words, carries_in = _split(operands)
    lanes = [warp.word(text) for text in words]
    if "X" in modifiers:
        lanes += [warp.predicate(text) for text in carries_in]
    total = sum(one.value for one in lanes)
    known = np.logical_and.reduce([one.known for one in lanes])
    carry = total >> 32
    written = {operands[0]: Lanes(total & MASK, known)}
    if carries_out:
        written[carries_out[0]] = Lanes(np.minimum(carry, 1), known)
    if len(carries_out) > 1:
        written[carries_out[1]] = Lanes(np.maximum(carry - 1, 0), known)
    return written


def imad(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    carries_out, words, carries_in = _split(operands)
    a, b = (warp.word(text) for text in words[:2])
    factors = [one.value.astype(object) for one in (a, b)]
    if ("WIDE" in modifiers or "HI" in modifiers) and "U32" not in modifiers:
        factors = [signed(one.value).astype(object) for one in (a, b)]
    if "WIDE" in modifiers:
        c = warp.both_words(words[2])
        known = _known_product(a, b) & c.known
        total = factors[0] * factors[1] + c.value
        written = pair(operands[0], total, known)
        if carries_out:
            written[carries_out[0]] = Lanes((total >> 64 != 0).astype(np.int64), known)
        return written
    c = warp.word(words[2])
    product = factors[0] * factors[1]
    total = (product >> 32 if "HI" in modifiers else product) + c.value
    known = _known_product(a, b) & c.known
    if "X" in modifiers:
        carry = warp.predicate(carries_in[0])
        total, known = total + carry.value, known & carry.known
    return {operands[0]: Lanes((total & MASK).astype(np.int64), known)}


def _known_product(a: Lanes, b: Lanes) -> np.ndarray:
    zero = (a.known & (a.value == 0)) | (b.known & (b.value == 0))
    return (a.known & b.known) | zero


def lea(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    carries_out, words, carries_in = _split(operands)
    low, base = warp.word(words[0]), warp.word(words[1])
    shift = int(words[-1], 16)
    known = low.known & base.known
    if "HI" in modifiers:
        if "SX32" in modifiers:
            value = signed(low.value).astype(object) << shift
        else:
            high = warp.word(words[2])
            value = (low.value.astype(object) + (high.value.astype(object) << 32)) << shift
            known = known & high.known
        total = ((value >> 32) & MASK) + base.value
    else:
        total = ((low.value.astype(object) << shift) & MASK) + base.value
    if "X" in modifiers:
        carry = warp.predicate(carries_in[0])
        total, known = total + carry.value, known & carry.known
    written = {operands[0]: Lanes((total & MASK).astype(np.int64), known)}
    if carries_out:
        written[carries_out[0]] = Lanes((total >> 32 != 0).astype(np.int64), known)
    return written


def shift(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    low, by, high = (warp.word(text) for text in operands[1:])
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


def least_or_most(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    a, b = (warp.word(text) for text in operands[1:3])
    x, y = (a.value, b.value) if "U32" in modifiers else (signed(a.value), signed(b.value))
    found = np.minimum(x, y) if operands[-1] in ("PT", "UPT") else np.maximum(x, y)
    return {operands[0]: Lanes(found & MASK, a.known & b.known)}


def from_constants(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    if "U8" in modifiers:
        found = re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", operands[1])
        return {operands[0]: warp.from_bank(int(found[1], 16), 1) if found else UNKNOWN}
    written, register = {}, operands[0]
    for place in range(words_written("LDC", modifiers)):
        written[register] = warp.word(operands[1], place)
        register = next_register(register)
    return written


def special(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    """Of block 0, whose numbers are 0."""
    return {operands[0]: warp.special.get(operands[1], ZERO)}


def clear(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    if operands[1] != "SRZ":
        return unknown_results("CS2R", modifiers, operands)
    return {operands[0]: ZERO, next_register(operands[0]): ZERO}


def half_constants(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    """Two halves times zero plus constants: how the compiler sets a register now and then."""
    if [text.lstrip("-") for text in operands[1:3]] != ["RZ", "RZ"] or len(operands) != 5:
        return {operands[0]: UNKNOWN}
    high, low = np.array([float(text) for text in operands[3:]], dtype=np.float16).view(np.uint16)
    return {operands[0]: constant(int(high) << 16 | int(low))}


def load(warp: Warp, modifiers: list[str], operands: tuple[str, ...]) -> Results:
    unknown = unknown_results("LDG", modifiers, operands)
    found = re.fullmatch(r"(?:desc\[UR\d+\])?\[(R\d+)(?:\.64)?(?:\+(0x[0-9a-f]+))?\]", operands[-1])
    width = 8 if "64" in modifiers else 4
    if found is None or "128" in modifiers or any(m in modifiers for m in ("U8", "U16", "S8")):
        return unknown
    address = warp.both_words(found[1])
    value, known = np.zeros(WARP, dtype=object), address.known.copy()
    for lane in np.flatnonzero(known):
        data = warp.launch.read(int(address.value[lane]) + int(found[2] or "0", 16), width)
        known[lane] = data is not None
        value[lane] = int.from_bytes(data or b"", "little")
    return (
        {**pair(operands[0], value, known)}
        if width == 8
        else {operands[0]: Lanes(value.astype(np.int64), known)}
    )


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
    "P2R": pack_predicates,
    "R2P": unpack_predicates,
    "HFMA2": half_constants,
    "LDG": load,
}
