"""The CUDA kernels in a library's machine code, as cuobjdump shows them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import triton
from issue_slots.lanes import Instruction

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
BYTES = {"float": 4, "double": 8, "__nv_bfloat16": 2, "__half": 2, "AnyType": 0}


@dataclass(repr=False)
class Kernel:
    """One kernel's code for one GPU.

    Attributes:
        gpu: "sm_90".
        name: forward_kernel, forward_loop_kernel or backward_kernel.
        types: its template arguments.
        usage: of resources, REG and so on.
        symbol: its mangled name.
        lines: its instructions, as they are printed.
    """

    gpu: str
    name: str
    types: list[str]
    usage: dict[str, int]
    symbol: str
    lines: list[str] = field(default_factory=list)

    @cached_property
    def code(self) -> list[str]:
        """The names of its instructions."""
        return [found[3] for line in self.lines if (found := _INSTRUCTION.match(line))]

    @cached_property
    def instructions(self) -> dict[int, Instruction]:
        """By address."""
        return dict(map(_parse, self.lines))

    def __repr__(self) -> str:
        return f"{self.name}<{', '.join(self.types)}> for {self.gpu}"

    @property
    def is_plain(self) -> bool:
        return "AnyType" in self.types

    @property
    def is_mixed(self) -> bool:
        return self.types[-1] == "true"

    @property
    def row_bytes(self) -> int:
        return BYTES[self.types[1]]

    @property
    def centre_bytes(self) -> int:
        """Of as many elements as 16 bytes of the student's row hold."""
        return 16 * BYTES[self.types[2]] // self.row_bytes

    @property
    def teacher_bytes(self) -> int:
        """Of as many elements as 16 bytes of the student's row hold; of a forward kernel."""
        return 16 * BYTES[self.types[-2]] // self.row_bytes

    def places(self, pattern: str) -> list[int]:
        """Where instructions stand that the pattern matches from their beginning."""
        return [i for i, name in enumerate(self.code) if re.match(pattern, name)]


_INSTRUCTION = re.compile(
    r"\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);"
)


def _parse(line: str) -> tuple[int, Instruction]:
    found = _INSTRUCTION.match(line)
    assert found is not None
    address, operands = int(found[1], 16), tuple(filter(None, map(str.strip, found[4].split(","))))
    return address, Instruction(address, found[2] or "", found[3], operands)


def cuobjdump(*arguments: str) -> Iterator[str]:
    """What it prints, by line."""
    command = [str(CUOBJDUMP), *arguments]
    quiet = subprocess.DEVNULL  # of Triton's code it warns line by line
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True) as tool:
        assert tool.stdout is not None
        yield from tool.stdout
    assert tool.returncode == 0


def read(library: Path) -> list[Kernel]:
    """All kernels of a library or an object file."""
    kernels: dict[tuple[str, str], Kernel] = {}
    symbols, gpu = [], ""
    for line in cuobjdump("-res-usage", str(library)):
        if found := re.match(r"arch = (sm_\d+)", line):
            gpu = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            symbols.append((gpu, found[1]))
        elif "REG:" in line:
            usage = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}
            kernels[symbols[-1]] = Kernel(gpu, "", [], usage, symbols[-1][1])
    names = subprocess.run(
        ["c++filt"], input="\n".join(symbol for _, symbol in symbols),
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for symbol, name in zip(symbols, names, strict=True):
        found = re.match(r"void (\w+)<(.*)>\(", name.replace("ndfast::cuda::", ""))
        assert found, name
        kernels[symbol].name, kernels[symbol].types = found[1], found[2].split(", ")

    for found_gpu, symbol, line in _code_lines(library):
        kernels[found_gpu, symbol].lines.append(line)
    assert all(kernel.code for kernel in kernels.values())
    return list(kernels.values())


def instructions_of(library: Path) -> dict[tuple[str, str], dict[int, Instruction]]:
    """By GPU and symbol, and by address."""
    found: dict[tuple[str, str], dict[int, Instruction]] = {}
    for gpu, symbol, line in _code_lines(library):
        address, instruction = _parse(line)
        found.setdefault((gpu, symbol), {})[address] = instruction
    return found


def _code_lines(library: Path) -> Iterator[tuple[str, str, str]]:
    """Each instruction's line, with its GPU and its kernel's symbol."""
    gpu, symbol = "", ""
    for line in cuobjdump("-sass", str(library)):
        if found := re.match(r"\s*code for (sm_\d+)", line):
            gpu = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            symbol = found[1]
        elif _INSTRUCTION.match(line):
            yield gpu, symbol, line
