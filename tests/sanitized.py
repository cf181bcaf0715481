"""The native library compiled with sanitizers, and Python run on it.

As a script it runs, under each of them, all tests that reach the library: `make sanitize`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils import cpp_extension

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FLAGS = (
    "-O1", "-g1", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast",
    "-fno-math-errno", "-fno-omit-frame-pointer", "-w", "-DPy_LIMITED_API=0x030A0000",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)  # fmt: skip

# The first import is of the sanitized library: pytest's pythonpath adds the checkout's later.
RUN_PYTEST = """
import sys, ndfast._C, pytest
assert ndfast._C.__file__.startswith(sys.argv[1]), ndfast._C.__file__
sys.exit(pytest.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Sanitizer:
    """One that a process can have; two of these exclude each other."""

    flag: str
    runtime: tuple[str, ...]  # to be there before Python's first allocation
    options: dict[str, str]
    sources: tuple[str, ...] = ("planted.cpp",)

    def missing(self) -> str | None:
        """Why it cannot run here."""
        if shutil.which(cpp_extension.get_cxx_compiler()) is None:
            return "no C++ compiler here"
        for name in self.runtime:
            if not os.path.isabs(_find(name)):
                return f"the compiler has no {name}"
        tried = self.run(ROOT, "pass")  # gcc 12's and 13's cannot lay out memory on every kernel
        return tried.stderr.strip() if tried.returncode else None

    def build(self, folder: Path) -> None:
        """A copy of the package in ``folder`` with the library compiled for this."""
        package = folder / "ndfast"
        shutil.copytree(ROOT / "ndfast", package, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
        include = [sysconfig.get_path("include"), *cpp_extension.include_paths()]
        compiler = (cpp_extension.get_cxx_compiler(), *FLAGS, f"-fsanitize={self.flag}")
        compiler += ("-fno-sanitize-recover=all",)

        def compile_one(source: Path) -> str:
            made = str(folder / f"{source.stem}.o")
            command = [*compiler, *(f"-I{path}" for path in include), "-c", str(source)]
            subprocess.run([*command, "-o", made], check=True)
            return made

        own = [ROOT / "csrc" / "bindings.cpp", *(ROOT / "csrc" / "cpu").glob("*.cpp")]
        added = [TESTS / "sanitizers" / name for name in self.sources]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
            objects = list(pool.map(compile_one, (*own, *added)))
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        libraries += ["-ltorch_cpu", "-ltorch", "-lc10"]
        linked = ["-shared", "-Wl,-Bsymbolic", *objects, *libraries]
        subprocess.run([*compiler, *linked, "-o", str(package / "_C.abi3.so")], check=True)

    def run(self, folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a Python program that finds in ``folder`` what `build` has put there."""
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True,
            env=os.environ | {"LD_PRELOAD": " ".join(map(_find, self.runtime))} | self.options,
        )  # fmt: skip

    def run_tests(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs pytest on what `build` has put into ``folder``; files are those of tests/."""
        paths = [str(TESTS / name) if name.endswith(".py") else name for name in arguments]
        # A report goes to the process's own stderr, and with the process pytest's capture ends.
        options = ("-q", "--capture=sys", "-p", "no:cacheprovider")
        return self.run(folder, RUN_PYTEST, str(folder), *options, *paths)


def _find(library: str) -> str:
    compiler = cpp_extension.get_cxx_compiler()
    command = [compiler, f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


SANITIZERS = {
    "address and undefined": Sanitizer(
        "address,undefined,float-cast-overflow",
        # libstdc++, for AddressSanitizer looks at its start for what throws exceptions.
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        # Python and PyTorch keep much until the process ends; test_repeated.py looks for growth.
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    "thread": Sanitizer(
        "thread",
        ("libtsan.so",),
        # Of what has been compiled without it, it sees the locks but not the memory accesses.
        {
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
            "OMP_NUM_THREADS": "1",
        },
        ("planted.cpp", "threads.cpp"),
    ),
}


def main() -> int:
    """Every test of the native backend under each sanitizer; 1,000 of the random calls."""
    os.environ.setdefault("NDFAST_FUZZ_CASES", "1000")
    names = ("options", "attach", "corners", "half_precision_rows", "stats", "fuzz")
    chosen = "not cuda and not triton and not int32"  # those take 4 GiB
    status = 0
    for name, sanitizer in SANITIZERS.items():
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            sanitizer.build(Path(folder))
            done = sanitizer.run_tests(
                Path(folder), *(f"test_{name}.py" for name in names), "-k", chosen
            )
        print(done.stdout, done.stderr, sep="\n", flush=True)
        status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
