"""glibc's malloc, told to keep what it has."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Makes freed memory stay with the process, for good; says whether that worked.

    Else a step's maps, megabytes each, go back to the kernel now and then, by how the heap happens
    to lie, and each of their pages is a fault the next time: 54,000 a second, and 12 % of a step of
    ResNet-20, were seen. With no mmap at all a threshold for it needs no setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
