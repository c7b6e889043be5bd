"""Reading what a rank left in its error file, whoever wrote it and however it ended.

Ours, or that of torch's ``@record``. A rank may be killed while it writes, fill it with
anything, or put a pipe in its place: reading never waits, never raises, and takes a bounded time.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from trainkit.lifecycle.causes import tells_peer_loss
from trainkit.lifecycle.failure import FailureRecord
from trainkit.lifecycle.hints import hint_of_text

__all__ = ["read_error_file"]

_LARGEST = 16 << 20
"""Bytes; of what is larger only the beginning is looked at."""
_SALVAGED = 64 << 10
"""Characters of a string in a file that is not whole."""

_CLASS = re.compile(r"(?P<error>[A-Za-z_][\w.]{0,199}): (?P<message>.*)", re.DOTALL)


def read_error_file(path: Path | None) -> FailureRecord | None:
    """The record in ``path``, or as much of it as can be told; None where there is nothing.

    A record that is not ours has no rank, no host, and the exit code 1.
    """
    text, written = _read(path)
    if not text.strip():
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return _salvaged(text, written)
    return FailureRecord.from_error_file(data) or _foreign(data, written)


def _read(path: Path | None) -> tuple[str, float]:
    """Text of a regular file, and when it was last written."""
    if path is None:
        return "", 0.0
    try:
        # A pipe that nobody writes to would be waited for.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return "", 0.0
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return "", 0.0
        with os.fdopen(os.dup(file), "rb") as stream:
            return stream.read(_LARGEST).decode(errors="replace"), found.st_mtime
    except OSError:
        return "", 0.0
    finally:
        os.close(file)


def _foreign(data: Any, written: float) -> FailureRecord | None:
    """What torch's ``@record`` writes, in the form of today or of earlier releases."""
    outer = data if isinstance(data, dict) else {}
    message = outer.get("message")
    inner = message if isinstance(message, dict) else {"message": message, "extraInfo": outer}
    text, extra = inner.get("message"), inner.get("extraInfo")
    extra = extra if isinstance(extra, dict) else {}
    if not isinstance(text, str) or not text:
        return None
    callstack = extra.get("py_callstack")
    time = _moment(extra.get("timestamp"), written)
    return _of_words(text, callstack if isinstance(callstack, str) else "", time)


def _salvaged(text: str, written: float) -> FailureRecord | None:
    """What is left of a file that was cut off."""
    message = _string(text, "message")
    if not message:
        return None
    return _of_words(message, _string(text, "py_callstack"), written)


def _string(text: str, key: str) -> str:
    """A string of a JSON text that need not be whole; empty if it is not there."""
    start = re.search(rf'"{key}":\s*"', text)
    if start is None:
        return ""
    rest = text[start.end() : start.end() + _SALVAGED]
    end = re.match(r'(?:[^"\\]|\\.)*+', rest, re.DOTALL)
    # Half of an escape at the end would make the whole string unreadable.
    found = re.sub(r"\\(u[0-9a-fA-F]{0,3})?$", "", end[0] if end else "")
    try:
        return str(json.loads(f'"{found}"', strict=False))
    except ValueError:
        return found


def _of_words(text: str, callstack: str, time: float) -> FailureRecord:
    named = _CLASS.match(text)
    error = named["error"].rpartition(".")[2] if named else ""
    message = named["message"] if named else text
    return FailureRecord(
        rank=None,
        host="",
        error=error,
        message=message,
        traceback=callstack,
        time=time,
        hint=hint_of_text(text),
        exit_code=1,
        peer_lost=tells_peer_loss(error, message),
    )


def _moment(stamp: Any, written: float) -> float:
    """When it failed: torch's stamps are whole seconds, and the file was written just then."""
    try:
        seconds = float(stamp)
    except (TypeError, ValueError, OverflowError):
        return written
    if not math.isfinite(seconds) or 0 <= written - seconds < 2:
        return written
    return seconds
