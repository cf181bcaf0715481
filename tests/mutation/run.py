"""Mutation testing: changes the definition and row_math.h, and prints what no test notices.

    python tests/mutation/run.py [--only reference.py]

Works on a copy. A mutant of the definition is written there before each run of the tests. Those of
row_math.h are compiled all at once, and an environment variable says which of them is called.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
DEFINITION = Path("ndfast/backends/reference.py")
ROW_MATH = Path("csrc/row_math.h")
WHICH = "NDFAST_MUTANT"
# What kills most comes first: a survivor costs all of them.
STAGES = [
    ["tests/test_definition.py"],
    ["tests/test_corners.py", "tests/test_stats.py", "tests/test_options.py"],
]
# What the line is changed to, where that is the same function: of two equal numbers, the other.
EQUIVALENT = {
    "const bool teacher_is_larger = teacher_norm >= student_norm || teacher_norm != teacher_norm;",
    "m = m <= eps ? eps : m;",
    "const T n_c = centre_norm <= eps ? eps : centre_norm;",
    "const T n_s = student_norm <= eps ? eps : student_norm;",
    "const T n_t = teacher_norm <= eps ? eps : teacher_norm;",
}
QUICK = "not cuda and not triton and not int32 and not streamed and not float16 and not float64"


def passes() -> bool:
    """Whether the tests pass, each stage in a process of its own that has torch already."""
    return all(pass_together(tests) for tests in STAGES)


def pass_together(tests: list[str]) -> bool:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.path[:0] = [os.getcwd()]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most of a short run's time
        os._exit(pytest.main(["-x", "--tb=no", "-p", "no:cacheprovider", "-k", QUICK, *tests]))
    return os.waitpid(child, 0)[1] == 0


def build() -> None:
    """The CPU part of the library, in place."""
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        env={**os.environ, "NDFAST_CUDA": "0", "NDFAST_NATIVE": "1"},
        check=True,
        capture_output=True,
    )


def definition() -> Iterator[tuple[Mutant, Callable[[], bool]]]:
    """Each mutant of reference.py and how to test it."""
    source = DEFINITION.read_text()

    def test(mutant: Mutant) -> bool:
        DEFINITION.write_text(mutant.source)
        try:
            return passes()
        finally:
            DEFINITION.write_text(source)

    for mutant in mutants_of(source):
        yield mutant, lambda mutant=mutant: test(mutant)


def row_math() -> Iterator[tuple[Mutant, Callable[[], bool]]]:
    """The same of row_math.h's functions, of those mutants that compile."""
    source = ROW_MATH.read_text()
    mutants = [mutant for mutant in mutants_of(source) if compiles(mutant.source)]
    ROW_MATH.write_text(all_in_one(source, mutants))
    build()

    def test(number: int) -> bool:
        os.environ[WHICH] = str(number)
        try:
            return passes()
        finally:
            del os.environ[WHICH]

    for number, mutant in enumerate(mutants, start=1):
        yield mutant, lambda number=number: test(number)


def compiles(header: str) -> bool:
    """Whether the header's functions can be called with doubles."""
    calls = "".join(
        f"auto f{i}() {{ return ndfast::{name}({', '.join(['1.0'] * len(arguments))}); }}\n"
        for i, (name, arguments, _) in enumerate(functions(header))
    )
    command = ["c++", "-std=c++17", "-fsyntax-only", "-w", "-x", "c++", "-"]
    return (
        subprocess.run(command, input=header + calls, text=True, capture_output=True).returncode
        == 0
    )


def functions(header: str) -> list[tuple[str, list[str], str]]:
    """Name, arguments and text of each function template of the header."""
    pattern = r"template <class T>\nNDFAST_HOST_DEVICE \S+ (\w+)\(([^)]*)\) \{\n.*?\n\}\n"
    found = re.finditer(pattern, header, re.S)
    return [(match[1], match[2].split(","), match[0]) for match in found]


def all_in_one(header: str, mutants: list[Mutant]) -> str:
    """The header with every mutant's functions beside the right ones, and a choice at run time."""
    versions = [header, *(mutant.source for mutant in mutants)]
    rest = header
    for _, _, function in functions(header):
        rest = rest.replace(function, "")
    end = rest.rindex("}  // namespace ndfast")
    text = ["#include <cstdlib>\n", rest[:end]]
    text.append(f'inline const int mutant = std::atoi(std::getenv("{WHICH}") ?: "0");\n')
    for number, version in enumerate(versions):
        each = "\n".join(text for _, _, text in functions(version))
        text.append(f"namespace mutant_{number} {{\n{each}\n}}\n")
    for name, _, _ in functions(header):
        cases = "".join(
            f"    case {number}: return mutant_{number}::{name}(a...);\n"
            for number in range(1, len(versions))
        )
        text.append(
            f"template <class... A> auto {name}(A... a) {{\n  switch (mutant) {{\n{cases}"
            f"    default: return mutant_0::{name}(a...);\n  }}\n}}\n"
        )
    return "".join([*text, rest[end:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a file's name, or a part of it")
    options = parser.parse_args()
    files = {DEFINITION: definition, ROW_MATH: row_math}
    num_survivors = 0
    sys.dont_write_bytecode = True  # two mutants may be as long, and written in one second
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ndfast", "csrc", "tests", "setup.py", "pyproject.toml", "README.md"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        os.chdir(folder)
        for slow_to_import in ("torch._inductor.config", "torch.utils.cpp_extension"):
            importlib.import_module(slow_to_import)  # so that no child has to
        build()
        if not passes():
            sys.exit("the tests fail without a mutant")
        for path, mutants_and_tests in files.items():
            if options.only in path.name:
                num_survivors += run(path, mutants_and_tests())
    return num_survivors > 0


def run(path: Path, mutants: Iterator[tuple[Mutant, Callable[[], bool]]]) -> int:
    """Tests the mutants of one file and prints the survivors."""
    began, total, survivors = time.monotonic(), 0, 0
    for mutant, test in mutants:
        if mutant.after in EQUIVALENT:
            continue
        total += 1
        if test():
            survivors += 1
            print(f"{path}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
    seconds = time.monotonic() - began
    print(f"{path}: {total} mutants, {survivors} survivors, {seconds:.0f} s", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
