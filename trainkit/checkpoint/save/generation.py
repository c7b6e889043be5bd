"""A number that no other process saving to the same root has, or ever had."""

import json
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass

from trainkit.checkpoint.format.catalog import step_folders
from trainkit.checkpoint.format.layout import GENERATIONS
from trainkit.errors import DeadlineError, EnvironmentFaultError, InputMissingError
from trainkit.storage import Storage
from trainkit.waiting import Deadline, wait_until

__all__ = ["Claim", "await_claim", "claim", "newest_generation", "refuse_overtaken"]

log = logging.getLogger(__name__)

_KEPT = 16
"""Claims that stay in the root, to tell who had them; only the newest one is needed."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A generation, and the bytes that claimed it."""

    generation: int
    content: bytes

    @property
    def path(self) -> str:
        """Where the claim lies."""
        return f"{GENERATIONS}/{self.generation:010d}"


def claim(storage: Storage) -> Claim:
    """Claim the next generation of a root; a restarted container gets another one.

    Raises:
        NoPermissionError: nothing can be written there.
    """
    storage.make_folder(GENERATIONS)
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "unix_time": round(time.time(), 3),
        "token": uuid.uuid4().hex,
    }
    content = json.dumps(holder).encode()
    while True:
        taken = sorted(int(name) for name in storage.names(GENERATIONS) if name.isdecimal())
        newest = newest_generation(storage)
        mine = Claim(newest + 1, content)
        try:
            storage.create(mine.path, content)
        except FileExistsError:
            continue
        for old in taken[:-_KEPT]:
            storage.delete(f"{GENERATIONS}/{old:010d}")
        return mine


def newest_generation(storage: Storage) -> int:
    """The generation that was claimed last; 0 where none was."""
    taken = (int(name) for name in storage.names(GENERATIONS) if name.isdecimal())
    # Folders count too: a root copied without its dot-names must not start anew.
    return max([*taken, *(folder.generation for folder in step_folders(storage))], default=0)


def await_claim(storage: Storage, theirs: Claim, *, rank: int, timeout: float) -> None:
    """Check that this rank sees what rank 0 wrote.

    Args:
        storage: as this rank opened it.
        theirs: rank 0's claim.
        rank: of this process.
        timeout: seconds that a network file system may need to show it.

    Raises:
        EnvironmentFaultError: it does not, so the path is another folder on this node.
    """
    try:
        wait_until(
            lambda: storage.size(theirs.path) is not None and storage.read(theirs.path),
            what=f"{theirs.path} of rank 0",
            deadline=Deadline(timeout),
        )
        found = storage.read(theirs.path)
    except (DeadlineError, InputMissingError) as reason:
        log.debug("%s", reason)
        found = b""
    if found != theirs.content:
        raise EnvironmentFaultError(
            f"the checkpoint path is not shared: rank {rank} does not see what rank 0 wrote to "
            f"{storage.url}/{theirs.path}. Mount one ReadWriteMany volume at this path in all "
            f"pods, or give a folder on one."
        )


def refuse_overtaken(storage: Storage, generation: int) -> None:
    """Refuse to save where a process that opened the root later has begun to save.

    Raises:
        EnvironmentFaultError: the message names that process's folder.
    """
    newer = [folder for folder in step_folders(storage) if folder.generation > generation]
    if newer:
        raise EnvironmentFaultError(
            f"another run saves to {storage.url}: it wrote {newer[0].name}, and this run has the "
            f"older generation {generation}. Give each run a folder of its own; a run that was "
            f"restarted has to end first."
        )
