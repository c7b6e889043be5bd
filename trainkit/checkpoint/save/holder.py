"""Who has a checkpoint root: a process, named so that others can tell whether it is alive."""

import json
import os
import re
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from trainkit.checkpoint.format.checksums import digest

__all__ = ["Fate", "Holder"]

Fate: TypeAlias = Literal["alive", "dead", "unknown"]
"""What this process can tell of another one by looking: ``unknown`` from any other host."""

_CONTAINER = re.compile(r"pods/([0-9a-f-]{32,36})/containers/([^/ ]+)/")
"""In the mount of a container's termination log, Kubernetes names the pod and the container."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has claimed a root, as its claim describes it."""

    host: str
    """Name of its host, or of its pod: for people."""
    pid: int
    started: int
    """Clock ticks from boot to its start; with ``pid``, ``boot`` and ``pid_namespace`` it
    names the process for good."""
    boot: str
    """Names the kernel that it runs on, until that is booted again."""
    pid_namespace: str
    """Where ``pid`` means anything."""
    container: str
    """Names its pod and container in it, which lives on when its processes are restarted; empty
    outside Kubernetes."""
    unix_time: float
    """When it claimed the root, by its own clock."""
    silence: float
    """Seconds without a sign of life after which it may be taken for dead."""
    run: str
    """The same in all claims of a process that has the root without a break; else never again."""

    @classmethod
    def here(cls, *, run: str = "", silence: float = 0.0) -> "Holder":
        """This process."""
        stat = _stat(os.getpid())
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=stat[1] if stat is not None else 0,
            boot=_text("/proc/sys/kernel/random/boot_id").strip(),
            pid_namespace=_pid_namespace(),
            container=_container(),
            unix_time=round(time.time(), 3),
            silence=silence,
            run=run or uuid.uuid4().hex,
        )

    def to_bytes(self) -> bytes:
        """A claim by this holder; no two are the same."""
        return json.dumps(asdict(self) | {"token": uuid.uuid4().hex}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Holder | None":
        """Read a claim back; None where it is damaged, or was cut off."""
        try:
            values = json.loads(data)
            return cls(
                host=str(values["host"]),
                pid=int(values["pid"]),
                started=int(values["started"]),
                boot=str(values["boot"]),
                pid_namespace=str(values["pid_namespace"]),
                container=str(values["container"]),
                unix_time=float(values["unix_time"]),
                silence=float(values["silence"]),
                run=str(values["run"]),
            )
        except (ValueError, KeyError, TypeError):
            return None

    def fate(self) -> Fate:
        """Whether it is alive, as far as one can tell from here without waiting."""
        if self.boot and (self.boot, self.pid_namespace) == (
            _text("/proc/sys/kernel/random/boot_id").strip(),
            _pid_namespace(),
        ):
            return self._fate_here()
        # A container is started again only when all of its processes have ended. Its hostname
        # proves nothing: pods in the host's network share it.
        return "dead" if self.container and self.container == _container() else "unknown"

    def is_this_process(self) -> bool:
        """Whether it is the one that asks."""
        return self.pid == os.getpid() and self.fate() == "alive"

    def age(self) -> str:
        """For how long it has had the root, by its clock and this one's, for people."""
        seconds = max(0, round(time.time() - self.unix_time))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        if hours:
            return f"{hours} h {minutes} min"
        return f"{minutes} min" if minutes else f"{seconds} s"

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.age()}"

    def _fate_here(self) -> Fate:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "dead"
        except (PermissionError, OverflowError):
            pass
        stat = _stat(self.pid)
        if stat is None:  # hidden from us, or it ended this moment
            return "unknown"
        state, started = stat
        return "dead" if state in "ZX" or started != self.started else "alive"


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process; None where it cannot be seen."""
    text = _text(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name is in parentheses and may hold blanks and parentheses itself.
    values = text[text.rindex(")") + 2 :].split()
    return values[0], int(values[19])


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _container() -> str:
    found = _CONTAINER.search(_text("/proc/self/mountinfo"))
    return digest(f"{found[1]}/{found[2]}".encode()) if found else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
