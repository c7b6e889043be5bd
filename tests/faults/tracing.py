"""strace, attached to a process that waits: kills at the n-th system call, and counts them."""

import collections
import contextlib
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

CALLS = (
    "open", "openat", "creat", "write", "pwrite64", "writev", "pwritev", "pwritev2",
    "fsync", "fdatasync", "sync_file_range", "syncfs", "rename", "renameat", "renameat2",
    "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "ftruncate", "truncate",
    "fallocate", "copy_file_range", "sendfile", "io_uring_enter",
)  # fmt: skip
"""All that can change a file or make a change durable; between two of these, a kill leaves what
it leaves at the second. Not all machines have each of them, hence strace's question mark."""

_NEVER_DONE = re.compile(r"= \?$", re.MULTILINE)
_TASK = re.compile(r"^(\d+) +\w+\(", re.MULTILINE)


class Strace:
    """strace on one process and all that it starts. A context manager: detached at its end."""

    def __init__(self, pid, log, *injections, calls=CALLS):
        """Attach.

        Args:
            pid: a process that waits, and goes on only when this has returned.
            log: file for the calls.
            *injections: strace's ``SET:WHAT`` to inject, such as ``fsync:error=EIO:when=3``.
            calls: names of system calls to look at.

        Raises:
            OSError: it cannot be attached; the message is strace's.
        """
        self.log = Path(log)
        command = [_program(), "-f", "-qq", "-o", str(log), "-s", "0"]
        command += ["-e", "trace=" + _set(calls), "-e", "signal=none"]
        for injection in injections:
            command += ["-e", "inject=" + injection]
        command += ["-p", str(pid)]
        # Quiet once would hide the line that says it is attached.
        command.remove("-qq")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        said, end = b"", time.monotonic() + 30
        while b"attached" not in said:
            if not select.select([self._process.stderr], [], [], end - time.monotonic())[0]:
                said += b"nothing for 30 s"
                break
            part = os.read(self._process.stderr.fileno(), 4096)
            if not part:
                break
            said += part
        if b"attached" not in said:
            self.close()
            raise OSError(said.decode(errors="replace").strip())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End strace; what it traced goes on."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()

    def most_calls(self):
        """How many calls the busiest task has made: strace counts each thread by itself."""
        counts = collections.Counter(_TASK.findall(self.log.read_text()))
        return max(counts.values(), default=0)

    def killed(self):
        """Whether a call was never done, since the process was killed at it."""
        return _NEVER_DONE.search(self.log.read_text()) is not None


def killing(number, calls=CALLS):
    """The injection that kills at the ``number``-th of ``calls``, before it is done."""
    return f"{_set(calls)}:signal=KILL:when={number}"


def _set(calls):
    return ",".join("?" + name for name in calls)


def _program():
    return shutil.which("strace") or "strace"


@functools.cache
def why_not():
    """Why strace cannot be used here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with Strace(sleeper.pid, os.devnull):
            return ""
    except OSError as error:
        return f"strace may not trace here: {str(error).splitlines()[-1]}"
    finally:
        sleeper.kill()
        sleeper.wait()
