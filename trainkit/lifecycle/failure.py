"""One rank's failure, as a record that survives the process.

The record goes where torch's elastic agent looks for it (``TORCHELASTIC_ERROR_FILE``), so
that ``torchrun``'s own summary shows our message and traceback, and our launcher the rest.
"""

import contextlib
import json
import math
import os
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainkit.errors import TrainkitError
from trainkit.lifecycle.causes import exit_code_of, hint_for, is_peer_loss, message_of
from trainkit.redaction import redacted

__all__ = ["FailureRecord", "report"]


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """What went wrong in one rank."""

    rank: int | None
    host: str
    error: str
    """Class of the error."""
    message: str
    traceback: str
    time: float
    """Seconds since the epoch."""
    hint: str
    exit_code: int
    peer_lost: bool = False
    """The error says that another rank, or the way to it, is gone: the cause is elsewhere."""
    own: bool = False
    """An error of trainkit: its message says all, and its traceback nothing to a user."""

    @classmethod
    def of(cls, error: BaseException, rank: int | None) -> "FailureRecord":
        """Describe ``error`` as it was raised in this process; without this process's secrets."""
        return cls(
            rank=rank,
            host=socket.gethostname(),
            error=type(error).__name__,
            message=redacted(message_of(error)),
            traceback=redacted("".join(traceback.format_exception(error))),
            time=time.time(),
            hint=hint_for(error),
            exit_code=exit_code_of(error),
            peer_lost=is_peer_loss(error),
            own=isinstance(error, TrainkitError),
        )

    def write(self, path: str) -> None:
        """Write the record in the form that torch's elastic agent reads."""
        extra: dict[str, Any] = {
            "py_callstack": self.traceback,
            "timestamp": str(int(self.time)),
            "trainkit": asdict(self),
        }
        payload = {"message": {"message": f"{self.error}: {self.message}", "extraInfo": extra}}
        # Losing the record must not hide the failure itself.
        with contextlib.suppress(OSError, ValueError):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.{os.getpid()}")
            temporary.write_text(json.dumps(payload), encoding="utf-8")
            temporary.replace(target)

    @classmethod
    def from_error_file(cls, data: Any) -> "FailureRecord | None":
        """Read back what ``write`` wrote; None for another program's error file."""
        try:
            record = cls(**data["message"]["extraInfo"]["trainkit"])
        except (KeyError, TypeError):
            return None
        return record if record._is_sound() else None

    def _is_sound(self) -> bool:
        """Whether the fields are what their types say: a file may hold anything."""
        texts = (self.host, self.error, self.message, self.traceback, self.hint)
        return (
            all(isinstance(text, str) for text in texts)
            and isinstance(self.rank, int | None)
            and isinstance(self.exit_code, int)
            and isinstance(self.time, int | float)
            and math.isfinite(self.time)
            and isinstance(self.peer_lost, bool)
            and isinstance(self.own, bool)
        )


def report(error: BaseException, *, rank: int | None, error_file: str | None) -> int:
    """Say what went wrong, for people and for the launcher; return the exit code.

    An error of trainkit is one message without a traceback; an error of the user's code is
    shown as Python shows it.
    """
    record = FailureRecord.of(error, rank)
    if isinstance(error, SystemExit) and not isinstance(error, TrainkitError):
        if error.code is not None and not isinstance(error.code, int):
            print(redacted(str(error.code)), file=sys.stderr)
        return record.exit_code
    # First, and whatever becomes of the words: standard error may be closed, or its pipe broken.
    if error_file and record.exit_code != 0:
        record.write(error_file)
    with contextlib.suppress(OSError, ValueError):
        _show(record, error, "trainkit" if rank is None else f"trainkit: rank {rank}")
    return record.exit_code


def _show(record: FailureRecord, error: BaseException, who: str) -> None:
    if isinstance(error, TrainkitError):
        print(f"{who}: {record.message}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print(f"{who}: interrupted", file=sys.stderr)
    else:
        print(record.traceback, end="", file=sys.stderr)
        if record.hint:
            print(f"{who}: hint: {record.hint}", file=sys.stderr)
    sys.stderr.flush()
