"""The C library's allocator, told to keep large buffers.

glibc hands every large buffer back to the system when it is freed, and every page of the next one is a page fault: on a
CPU that is up to half of a network's time. Kept, the memory is used again. Linux with glibc only; elsewhere nothing is
done.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes of free memory at the top of the heap that are not handed back: mallopt's largest value


def keep_large_buffers() -> bool:
    """Makes freed memory stay with this process, up to 2 GiB at the heap's top and all below it; for programs to call.

    Returns:
        Whether the allocator took the settings.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT)))
