"""Log files that get what processes write as it is, byte by byte."""

import errno
import os
import threading
from pathlib import Path

from trainkit.errors import EnvironmentFaultError, NoPermissionError

__all__ = ["LogFile", "LogFiles"]

_LONGEST_BEGUN = 4096
"""Bytes of an unfinished line that are held back where streams share a file."""


class LogFile:
    """A file that gets all bytes as they are, appended.

    Where several streams share it, their lines are not written into each other: what a stream
    has begun waits for its newline, for at most ``quiet`` seconds and ``_LONGEST_BEGUN`` bytes.
    """

    def __init__(self, path: Path, quiet: float) -> None:
        """Open ``path``, and make its folder where there is none.

        Raises:
            NoPermissionError: the file may not be written.
            EnvironmentFaultError: it cannot be for another reason.
        """
        self.path = path
        self.users = 0
        self.failed = False  # for whoever writes, to tell it once
        self._quiet = quiet
        self._begun: dict[object, tuple[bytes, float]] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, flags, 0o666)
        except OSError as reason:
            message = (
                f"the log file {str(path)!r} cannot be opened: {reason.strerror or reason}. "
                f"Choose a folder that this user may write to (--log-dir)."
            )
            if isinstance(reason, PermissionError) or reason.errno == errno.EROFS:
                raise NoPermissionError(message) from None
            raise EnvironmentFaultError(message) from None

    def write(self, user: object, data: bytes, now: float) -> None:
        """Append what one stream gave.

        Raises:
            OSError: the file took not all of it; the rest of ``data`` is lost.
        """
        begun, _ = self._begun.pop(user, (b"", now))
        data = begun + data
        if self.users > 1:
            end = data.rfind(b"\n") + 1
            if len(data) - end <= _LONGEST_BEGUN:
                if end < len(data):
                    self._begun[user] = data[end:], now
                data = data[:end]
        self._append(data)

    def due(self) -> float | None:
        """When ``settle`` has something to write."""
        if not self._begun:
            return None
        return min(since for _, since in self._begun.values()) + self._quiet

    def settle(self, now: float) -> None:
        """Write what was begun and did not go on.

        Raises:
            OSError: the file did not take it.
        """
        for user, (data, since) in list(self._begun.items()):
            if now >= since + self._quiet:
                del self._begun[user]
                self._append(data)

    def leave(self, user: object) -> None:
        """A stream has ended; with the last one the file is closed.

        Raises:
            OSError: the file did not take its last bytes.
        """
        self.users -= 1
        data, _ = self._begun.pop(user, (b"", 0.0))
        try:
            self._append(data)
        finally:
            if not self.users:
                os.close(self._fd)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class LogFiles:
    """The log files that are open, one for each path; may be used from several threads."""

    def __init__(self, quiet: float) -> None:
        """Begin with none; for ``quiet`` see ``LogFile``."""
        self._quiet = quiet
        self._lock = threading.Lock()
        self._files: dict[str, LogFile] = {}

    def open(self, path: Path) -> LogFile:
        """The file of ``path``, opened for one more stream; see ``LogFile`` for errors."""
        key = os.path.realpath(path)
        with self._lock:
            if key not in self._files:
                self._files[key] = LogFile(path, self._quiet)
            file = self._files[key]
            file.users += 1
        return file

    def leave(self, file: LogFile, user: object) -> None:
        """A stream has ended; the last one closes the file.

        Raises:
            OSError: the file did not take the stream's last bytes.
        """
        with self._lock:
            if file.users == 1:
                self._files = {key: one for key, one in self._files.items() if one is not file}
            file.leave(user)
