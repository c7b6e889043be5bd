"""What ``/proc`` says about processes: who is whose child, and which descend from one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessInfo", "children_exist", "descendants", "own_children", "process_table"]


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process as ``/proc/<pid>/stat`` shows it."""

    pid: int
    parent: int
    group: int
    session: int
    state: str
    """``R``, ``S``, ``D``, ``T``, ``Z`` …; ``Z`` is dead and not yet waited for."""
    started: int
    """Clock ticks since boot; with ``pid`` it identifies a process for good."""
    name: str = ""
    """At most 15 bytes of the program's name; also of one that is dead."""

    @property
    def zombie(self) -> bool:
        """Whether it is dead already and only waits to be reaped."""
        return self.state in "ZX"

    def command(self) -> str:
        """Its command line, or its name in brackets when there is none."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return "[gone]"
        line = " ".join(word.decode(errors="replace") for word in words if word)
        return line or f"[{'zombie' if self.zombie else 'no command line'}]"


def process_table() -> dict[int, ProcessInfo]:
    """All processes that this one can see, by process id."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            info = _read(int(name))
            if info is not None:
                found[info.pid] = info
    return found


def descendants(
    ancestor: int, table: Mapping[int, ProcessInfo] | None = None
) -> dict[int, ProcessInfo]:
    """The children of ``ancestor``, their children and so on; without ``ancestor`` itself."""
    table = process_table() if table is None else table
    children: dict[int, list[ProcessInfo]] = {}
    for info in table.values():
        children.setdefault(info.parent, []).append(info)
    found: dict[int, ProcessInfo] = {}
    waiting = [ancestor]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in found:
                found[child.pid] = child
                waiting.append(child.pid)
    return found


def children_exist() -> bool:
    """Whether this process has any child, dead or alive; costs one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def own_children() -> set[int]:
    """Process ids of this process's children: quicker than the table, not as certain.

    The kernel may leave one out if another ends at that very moment.
    """
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            text = Path(f"/proc/self/task/{task}/children").read_text()
        except FileNotFoundError:
            if Path(f"/proc/self/task/{task}").exists():
                # This kernel does not have the file.
                own = os.getpid()
                return {info.pid for info in process_table().values() if info.parent == own}
        else:
            found.update(map(int, text.split()))
    return found


def _read(pid: int) -> ProcessInfo | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None  # it ended while the folder was read
    # The name is in parentheses and may hold blanks and parentheses itself.
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcessInfo(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        state=fields[0].decode(),
        started=int(fields[19]),
        name=text[text.index(b"(") + 1 : text.rindex(b")")].decode(errors="replace"),
    )
