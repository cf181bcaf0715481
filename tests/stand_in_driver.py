"""A libcuda of any version, as much of it as is asked for before anything runs on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_cxx_compiler

SOURCE = """
#include <cstdint>
#include <cstring>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuStreamGetId(void* stream, uint64_t* id) { *id = ~uint64_t(stream); return 0; }
int not_there() { return 500; }
int cuGetProcAddress_v2(const char* name, void** found, int, uint64_t, int* status) {
  if (status) *status = 0;
  *found = (void*)not_there;
  if (!std::strcmp(name, "cuInit")) *found = (void*)cuInit;
  if (!std::strcmp(name, "cuDriverGetVersion")) *found = (void*)cuDriverGetVersion;
  if (!std::strcmp(name, "cuGetProcAddress")) *found = (void*)cuGetProcAddress_v2;
  return 0;
}
int cuGetProcAddress(const char* name, void** found, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, found, version, flags, nullptr);
}
}
"""


def output_beside(version: int, code: str, folder: Path) -> str:
    """What a fresh interpreter prints where the driver is for CUDA ``version``, 12040 for 12.4.

    Skips without a C++ compiler.
    """
    compiler = get_cxx_compiler()
    if shutil.which(compiler) is None:
        pytest.skip("no C++ compiler here")
    source = folder / "driver.cpp"
    source.write_text(SOURCE.replace("VERSION", str(version)))
    command = [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source]
    subprocess.run(command, check=True)
    paths = filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")])
    return subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)},
    ).stdout  # fmt: skip
