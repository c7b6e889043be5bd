"""The termination message: what ``kubectl describe pod`` shows of a container that failed."""

import contextlib
import os

__all__ = ["LARGEST", "cut", "cut_middle", "write_termination_message"]

LARGEST = 4096
"""Bytes of a container's termination message; the kubelet cuts off what is more."""

_DEFAULT = "/dev/termination-log"
_MARK = "\n… {} bytes left out …\n"


def write_termination_message(text: str, path: str | None) -> None:
    """Write ``text`` for the kubelet; a message that cannot be written is left out.

    Args:
        text: at most 4,096 bytes of it are written.
        path: the file, made if need be; None: ``/dev/termination-log`` where it exists, as in a
            pod. It is written in place, because the kubelet has mounted that very file.
    """
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
    # A pipe that nobody reads is no reason to wait.
    flags |= os.O_NONBLOCK | os.O_NOCTTY | (os.O_CREAT if path else 0)
    with contextlib.suppress(OSError, ValueError):
        file = os.open(path or _DEFAULT, flags, 0o644)
        try:
            os.write(file, cut(text, LARGEST).encode(errors="replace"))
        finally:
            os.close(file)


def cut(text: str, size: int) -> str:
    """The beginning of ``text``, at most ``size`` bytes of UTF-8, with a mark where it was cut."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return text
    return _whole(data[: max(0, size - 3)]) + "…" * (size >= 3)


def cut_middle(text: str, size: int) -> str:
    """``text`` in at most ``size`` bytes of UTF-8: its beginning and its end, of which more.

    The end of a traceback says where it went wrong; the beginning, where it came from.
    """
    data = text.encode(errors="replace")
    if len(data) <= size:
        return text
    room = size - len(_MARK.format(len(data)).encode())
    if room < 64:
        return cut(text, size)
    head = _whole(data[: room // 3])
    tail = _whole(data[-(room - room // 3) :])
    # Whole lines, where there are some.
    head = head[: head.rfind("\n")] if "\n" in head else head
    _, newline, lines = tail.partition("\n")
    tail = lines if newline and lines else tail
    left_out = len(data) - len(head.encode()) - len(tail.encode())
    return head + _MARK.format(left_out) + tail


def _whole(data: bytes) -> str:
    """Text of bytes that may begin or end within a character."""
    return data.decode(errors="ignore")
