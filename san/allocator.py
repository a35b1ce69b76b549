"""Configures the C library's allocator to keep large buffers.

glibc returns every large buffer to the system when it is freed, so each page of the next buffer is a page fault. On a
CPU, page faults can take half of a network's time. Buffers that are kept are reused. Linux with glibc only; on other
systems nothing is done.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_KEPT = 2**31 - 1  # bytes of free memory at the top of the heap that are kept: mallopt's largest value


def keep_large_buffers() -> bool:
    """Keep freed memory in this process, up to 2 GiB at the top of the heap and all below. Only commands call it.

    Returns:
        whether the allocator accepted the settings.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT)))
