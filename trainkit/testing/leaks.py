"""What a test leaves behind in its process: found, named and, where possible, put back.

Threads and processes that are ending already get a few seconds to do so. A leak is reported
once: the environment, the working folder and signal handlers are restored, child processes
killed, so that only the test that leaks fails and not the ones after it.
"""

import contextlib
import gc
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trainkit.config import environ, is_secret, set_environ
from trainkit.errors import DeadlineError
from trainkit.processes.table import ProcessInfo, descendants, own_children, process_table
from trainkit.testing.connection import nursery_pids
from trainkit.testing.family import kill
from trainkit.waiting import Deadline, wait_until

__all__ = ["Surroundings"]

_ENDING_TIME = 5.0
"""Seconds that threads, processes and ports get to go away once the test is over."""

_OWN_VARIABLES = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
"""Not the test's: pytest's, and what scikit-learn sets once it is imported, by XGBoost too."""

_LASTING_THREADS = ("fsspecIO", "asyncio_*")
"""Names of threads that a library starts once for the whole process: fsspec's event loop, and the
helpers of such a loop."""

_LASTING_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Parts of command lines of helpers that Python starts once for the whole process."""

_LASTING_FILES = ("torchinductor_*", "pymp-*")
"""Temp folders that libraries make once for the whole process."""

_PROBE_NAME = re.compile("[a-z0-9_]{8}")
_PROBE_TEXTS = (b"", b"blat")
"""``tempfile`` tries out a folder by such a file, for an instant, in every process that looks for
one: there it stays if just then the process is killed, as loaders' workers are."""


@dataclass(frozen=True)
class Surroundings:
    """The state of this process and of some folders at one moment."""

    variables: Mapping[str, str]
    folder: str | None
    handlers: Mapping[int, Any]
    threads: frozenset[threading.Thread]
    processes: frozenset[ProcessInfo]
    ports: Mapping[int, int]
    """Listening TCP ports, and the file descriptor of each."""
    process_group: bool
    """Whether torch.distributed is initialised."""
    files: Mapping[Path, frozenset[str]]
    """The names in each watched folder."""

    @classmethod
    def now(cls, *folders: Path) -> "Surroundings":
        """Take stock.

        Args:
            folders: where no test may leave files. Hidden names and caches do not count.
        """
        return cls(
            variables=dict(environ()),
            folder=_working_folder(),
            handlers=_handlers(),
            threads=frozenset(threading.enumerate()),
            processes=frozenset(_children().values()),
            ports=_listening_ports(),
            process_group=_process_group_exists(),
            files={folder: _names(folder) for folder in folders},
        )

    def leaks(self) -> list[str]:
        """What there is now and was not there then, one line each; waits for what is ending."""
        lasting = [*_wait_away(self._new_threads), *_wait_away(self._new_processes)]
        if not self.process_group and _process_group_exists():
            lasting.append("torch.distributed: the process group is still initialised")
        else:
            # The ports of a process group would only repeat the line above.
            lasting += _wait_away(self._new_ports)
        return (
            lasting
            + self._changed_variables()
            + self._changed_handlers()
            + self._moved()
            + self._new_files()
        )

    def restore(self) -> None:
        """Put back what can be put back, so that the next test starts clean."""
        now = environ()
        self_made = [name for name in now if name not in self.variables]
        set_environ(dict.fromkeys(self_made) | dict(self.variables))
        if self.folder is not None:
            os.chdir(self.folder)
        for number, handler in self.handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        for info in self._left_processes():
            kill(info.pid)
            if info.parent == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(info.pid, 0)
        if not self.process_group and _process_group_exists():
            sys.modules["torch.distributed"].destroy_process_group()

    def _new_threads(self) -> list[str]:
        return [
            f"thread: {thread.name!r} still runs ({'daemon' if thread.daemon else 'not daemon'})"
            for thread in threading.enumerate()
            if thread not in self.threads
            and not any(fnmatchcase(thread.name, lasting) for lasting in _LASTING_THREADS)
        ]

    def _left_processes(self) -> list[ProcessInfo]:
        known = {(info.pid, info.started) for info in self.processes}
        return [
            info
            for info in _children().values()
            if (info.pid, info.started) not in known
            and not any(part in info.command() for part in _LASTING_PROCESSES)
        ]

    def _new_processes(self) -> list[str]:
        return [
            f"process: {info.pid} "
            + ("ended, but nobody waited for it" if info.zombie else f"runs: {info.command()}")
            for info in self._left_processes()
        ]

    def _new_ports(self) -> list[str]:
        return [
            f"port: this process still listens on TCP port {port} (file descriptor {descriptor})"
            for port, descriptor in _listening_ports().items()
            if port not in self.ports
        ]

    def _changed_variables(self) -> list[str]:
        now = environ()
        lines = []
        for name in sorted((now.keys() | self.variables.keys()) - _OWN_VARIABLES):
            before, after = self.variables.get(name), now.get(name)
            if before != after:
                shown = ("<hidden>",) * 2 if is_secret(name) else (repr(before), repr(after))
                lines.append(f"environment: {name} was {shown[0]} and is {shown[1]}")
        return lines

    def _changed_handlers(self) -> list[str]:
        return [
            f"signal handler: {signal.Signals(number).name} was {self.handlers[number]!r} "
            f"and is {handler!r}"
            for number, handler in _handlers().items()
            if handler != self.handlers[number]
        ]

    def _moved(self) -> list[str]:
        now = _working_folder()
        return [] if now == self.folder else [f"working folder: was {self.folder}, is {now}"]

    def _new_files(self) -> list[str]:
        return [
            f"file: {folder / name} was left"
            for folder, names in self.files.items()
            for name in sorted(_names(folder) - names)
            if not _is_probe(folder / name)
        ]


def _wait_away(find: Callable[[], list[str]]) -> list[str]:
    """What ``find`` still finds when the time for going away is over."""
    if not find():
        return []
    gc.collect()  # what hangs in reference cycles is not leaked, only late
    try:
        wait_until(lambda: not find(), what="leftovers", deadline=Deadline(_ENDING_TIME))
    except DeadlineError:
        return find()
    return []


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _handlers() -> dict[int, Any]:
    # Those between the last standard and the first real-time signal have no names; nobody can
    # set them from Python.
    return {int(number): signal.getsignal(number) for number in signal.Signals}


def _children() -> dict[int, ProcessInfo]:
    """Descendants of this process, without its nurseries and what is below them."""
    nurseries = nursery_pids()
    if own_children() <= nurseries:
        return {}
    table = process_table()
    found = descendants(os.getpid(), table)
    for nursery in nurseries:
        found.pop(nursery, None)
        for pid in descendants(nursery, table):
            found.pop(pid, None)
    return found


def _listening_ports() -> dict[int, int]:
    ports = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and copy.family in (socket.AF_INET, socket.AF_INET6):
                    ports[copy.getsockname()[1]] = int(name)
        except OSError:
            continue  # it was closed meanwhile: the descriptor of the listing itself, say
    return ports


def _process_group_exists() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())


def _is_probe(path: Path) -> bool:
    if not _PROBE_NAME.fullmatch(path.name) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) in _PROBE_TEXTS


def _names(folder: Path) -> frozenset[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return frozenset()
    ignored = (".*", "__pycache__", *_LASTING_FILES)
    return frozenset(
        name for name in names if not any(fnmatchcase(name, pattern) for pattern in ignored)
    )
