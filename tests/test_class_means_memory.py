"""A million wide features, of ImageNet-21k's classes, come to class means in under a gigabyte."""

from __future__ import annotations

import subprocess
import sys

import pytest

FEATURES, WIDTH, CLASSES, BATCH = 1_000_000, 2048, 21_841, 4096

# In a process of its own, whose peak it prints in kB: packages, batch and all. getrusage would
# begin with the peak of the process that started it.
PROGRAM = rf"""
import re, torch, ndfast
torch.set_num_threads(1)  # two wait for each other where other work runs
class_means = ndfast.ClassMeans({CLASSES}, {WIDTH})
features, rows = torch.ones({BATCH}, {WIDTH}), torch.arange({BATCH})
for left in range({FEATURES}, 0, -{BATCH}):
    class_means.update(features[:left], (rows[:left] + left) % {CLASSES})
assert class_means.counts.sum() == {FEATURES}
assert (class_means.compute() == 1).all()
print(*re.findall(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read()))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_a_million_features_take_less_than_a_gigabyte() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stdout) < 1e9
