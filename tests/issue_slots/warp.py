"""Follows one warp through a kernel's machine code and counts what it issues.

Integers and predicates are computed, lane by lane, from the launch's real parameters and labels:
they say where a warp goes. Floats are not: a kernel whose way depends on one is refused. Lanes that
part meet again at the lowest address that one of them has yet to reach, as the compiler lays code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from issue_slots.lanes import (
    ALL,
    MASK,
    NONE,
    UNKNOWN,
    WARP,
    WITHOUT_RESULT,
    ZERO,
    Instruction,
    Lanes,
    constant,
    unknown_results,
)
from issue_slots.meanings import MEANINGS


@dataclass(frozen=True)
class Launch:
    """A launch whose blocks take ``rows`` rows at once.

    Attributes:
        code: the kernel's, by address.
        threads: of a block, (x, y).
        parameters: as they lie in the kernel's constants, from ``begin`` on.
        labels: an address, and what lies there; no other memory is read.
    """

    code: dict[int, Instruction]
    threads: tuple[int, int]
    parameters: bytes
    begin: int
    labels: tuple[int, bytes]
    rows: int

    @property
    def num_warps(self) -> int:
        return self.threads[0] * self.threads[1] // WARP

    def read(self, address: int, count: int) -> bytes | None:
        begin = address - self.labels[0]
        found = self.labels[1][begin : begin + count] if begin >= 0 else b""
        return found if len(found) == count else None


class Warp:
    """Warp ``number`` of a launch of one block."""

    def __init__(self, launch: Launch, number: int) -> None:
        self.launch = launch
        x, y = launch.threads
        bank = bytearray(launch.begin) + launch.parameters
        for place, value in enumerate((x, y, 1, 1, 1, 1)):  # the block's threads, the grid's blocks
            bank[4 * place : 4 * place + 4] = value.to_bytes(4, "little")
        self._bank = bytes(bank)
        self._registers: dict[str, Lanes] = {}
        thread = number * WARP + np.arange(WARP)
        self.special = {
            "SR_TID.X": Lanes(thread % x, ALL),
            "SR_TID.Y": Lanes(thread // x % y, ALL),
            "SR_LANEID": Lanes(np.arange(WARP), ALL),
        }
        self._alive = thread < x * y

    def run(self) -> int:
        """The instructions that it issues to its end.

        Raises:
            ValueError: a branch depends on what is not known.
        """
        code = self.launch.code
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
        value, known = self.predicate(instruction.guard[1:])
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
            value, known = self.word(operands[0].split()[0])
            if not known[taken].all():
                raise ValueError(f"the way of a warp depends on a value in memory: {instruction}")
            return value
        if name == "BRX" or name == "BRXU":
            raise ValueError(f"a jump by a table: {instruction}")
        if name in WITHOUT_RESULT:
            return None
        meaning = MEANINGS.get(name.removeprefix("U"))
        if meaning is None:
            written = unknown_results(name, modifiers, operands)
        else:
            written = meaning(self, modifiers, operands)
        for register, lanes in written.items():
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
                np.where(taken, lanes.value, before.value),
                np.where(taken, lanes.known, before.known),
            )
        self._registers[register] = lanes

    # What operands mean.

    def predicate(self, text: str) -> Lanes:
        value, known = (
            Lanes(ALL.astype(np.int64), ALL)
            if text.lstrip("!") in ("PT", "UPT")
            else self._registers.get(text.lstrip("!"), UNKNOWN)
        )
        return Lanes(1 - value, known) if text.startswith("!") else Lanes(value, known)

    def word(self, text: str, place: int = 0) -> Lanes:
        """An operand's word; of a register pair that of ``place``."""
        text = text.split(".reuse")[0]
        if text[0] in "-~":
            value, known = self.word(text[1:], place)
            if text[0] == "~":
                return Lanes(value ^ MASK, known)
            return Lanes(-value & MASK, known)
        if found := re.fullmatch(r"(U?)R(\d+|Z)(\.64)?", text):
            if found[2] == "Z":
                return ZERO
            return self._registers.get(f"{found[1]}R{int(found[2]) + place}", UNKNOWN)
        if found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+|RZ)\]", text):
            return self.from_bank(int(found[1].replace("RZ", "0"), 16) + 4 * place)
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
            return constant(int(text, 0) if place == 0 else -(int(text, 0) < 0))
        return UNKNOWN

    def from_bank(self, offset: int, width: int = 4) -> Lanes:
        found = self._bank[offset : offset + width]
        return constant(int.from_bytes(found, "little")) if len(found) == width else UNKNOWN

    def both_words(self, text: str) -> Lanes:
        """A register pair's 64 bits, as Python's integers."""
        low, high = self.word(text), self.word(text, 1)
        value = low.value.astype(object) + (high.value.astype(object) << 32)
        return Lanes(value, low.known & high.known)
