"""Moments that ranks note in files: the monotonic clock is one for all processes of a host."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Stamp", "read_stamps", "stamp"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What one rank noted."""

    event: str
    restart: int
    rank: int
    pid: int
    time: float
    """Seconds of the monotonic clock."""


def stamp(folder: str, event: str) -> None:
    """Note in ``folder`` that this rank has come to ``event``."""
    now = time.monotonic_ns()
    rank, restart = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    path = Path(folder) / f".{event}-{restart}-{rank}-{os.getpid()}"
    path.write_text(str(now))
    path.rename(path.with_name(path.name[1:]))  # whoever sees it sees all of it


def read_stamps(folder: Path, event: str, restart: int) -> dict[int, Stamp]:
    """The ranks that have come to ``event`` in this attempt."""
    found = {}
    for path in folder.glob(f"{event}-{restart}-*"):
        _, _, rank, pid = path.name.split("-")
        moment = int(path.read_text()) / 1e9
        found[int(rank)] = Stamp(event, restart, int(rank), int(pid), moment)
    return found
