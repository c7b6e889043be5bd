"""Memory in large pages, through which bytes go to a disk faster than from small ones.

A request to a disk lists the pieces of memory that it is about, as many as the device takes. In
pages of 4 KiB that is a megabyte at most; in pages of 2 MiB, many times that.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["BUFFER_BYTES", "address", "buffer", "copy"]

BUFFER_BYTES = 4 << 20
"""Of one buffer: two pages."""

_PAGE = 2 << 20
_NOWHERE = 1
_KEPT = 4
"""Buffers that stay from one group of files to the next: the kernel fills new ones with zeros."""
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_free: list[memoryview] = []


@contextlib.contextmanager
def buffer() -> Iterator[memoryview | None]:
    """A buffer for one thread, on a boundary of its pages; None where there are no large pages."""
    found = _buffer() if _are_there() else None
    try:
        yield found
    finally:
        if found is not None and len(_free) < _KEPT:
            _free.append(found)


def copy(data: memoryview, into: memoryview) -> memoryview:
    """Copy bytes to the beginning of a buffer, while other threads of Python go on.

    Returns:
        The bytes in the buffer.
    """
    begin = address(data)
    if begin == _NOWHERE:
        into[: len(data)] = data
    else:
        ctypes.memmove(address(into), begin, len(data))
    return into[: len(data)]


def address(data: memoryview) -> int:
    """Where the bytes lie in memory; 1, which is on no boundary, where that cannot be told."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(data))
    except (TypeError, ValueError):  # read-only memory, or none
        return _NOWHERE


def _buffer() -> memoryview | None:
    try:  # another thread may be faster
        return _free.pop()
    except IndexError:
        with contextlib.suppress(OSError):  # no memory for it: it goes without
            return _new()
        return None


def _new() -> memoryview:
    pages = mmap.mmap(-1, BUFFER_BYTES + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # pages of 4 KiB then, which do no harm
        pages.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(pages)
    begin = -address(whole) % _PAGE
    return whole[begin : begin + BUFFER_BYTES]


@cache
def _are_there() -> bool:
    """Whether the kernel gives large pages to those who ask for them."""
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False
