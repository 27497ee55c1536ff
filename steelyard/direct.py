"""Reading and writing past the page cache (O_DIRECT): gigabytes that nobody wants again soon neither push other programs' pages out nor cost a copy each.

Where the file system or the memory can't do it (tmpfs, FUSE, an odd offset), the bytes go the ordinary way; nobody needs to know.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

ALIGNED_BYTES = 4096
"""What every common device and file system is content with, for offsets, lengths and memory alike."""

DIRECT_FROM_BYTES = 16 << 20
"""Files from this size are worth it."""


HUGE_BYTES = 2 << 20
"""A huge page. Memory of small ones reaches a device as a list of 4 KiB, and a device takes a few hundred entries a request: a mebibyte of them
is two requests, of which the second is tiny, and the medium waits in between."""


def aligned_buffer(size_bytes: int) -> memoryview:
    """Zeroed memory that begins on a page, as direct reads and writes ask for. *size_bytes* of 0 gives one byte."""
    return aligned_buffers(1, size_bytes)[0]


def aligned_buffers(count: int, size_bytes: int) -> list[memoryview]:
    """*count* buffers as aligned_buffer() gives them, in one region, so that also small ones lie in huge pages where the kernel has them."""
    step = -(-max(1, size_bytes) // ALIGNED_BYTES) * ALIGNED_BYTES
    region = _region(count * step)
    return [region[at : at + max(1, size_bytes)] for at in range(0, count * step, step)]


def _region(size_bytes: int) -> memoryview:
    if size_bytes < HUGE_BYTES:
        return memoryview(mmap.mmap(-1, size_bytes))
    import ctypes

    # Not the default, shared memory: that has no huge pages. Older kernels begin it anywhere.
    memory = mmap.mmap(-1, size_bytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_BYTES
    with contextlib.suppress(OSError, AttributeError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[start : start + size_bytes]


def open_direct(fd: int, flags: int) -> int:
    """A second descriptor of the open file *fd* that goes past the page cache; -1 where that can't be had."""
    try:
        # By the descriptor, not the path: it is this very file, whatever the name leads to by now.
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return -1


def write_direct(fd: int, view: memoryview, offset: int) -> int:
    """Write as much of *view* as is aligned and return how much that was; the rest is the caller's. :raises OSError: of the medium."""
    done, whole = 0, len(view) & -ALIGNED_BYTES
    if offset % ALIGNED_BYTES:
        return 0
    while done < whole:
        try:
            done += os.pwrite(fd, view[done:whole], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return done  # the memory is not aligned, or this file system wants larger steps
        if done % ALIGNED_BYTES:
            return done
    return done


def read_direct(fd: int, view: memoryview, offset: int) -> int:
    """Fill as much of *view* as is aligned and return how much that was; the rest, and the end of the file, are the caller's. :raises OSError:"""
    done, whole = 0, len(view) & -ALIGNED_BYTES
    if offset % ALIGNED_BYTES:
        return 0
    while done < whole:
        try:
            got = os.preadv(fd, [view[done:whole]], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return done
        done += got
        if got == 0 or done % ALIGNED_BYTES:
            break
    return done
