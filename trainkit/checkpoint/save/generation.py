"""A number that no other process saving to the same root has, or ever had."""

import logging
import re
from dataclasses import dataclass, field

from trainkit.checkpoint.format.catalog import step_folders
from trainkit.checkpoint.format.layout import GENERATIONS
from trainkit.checkpoint.save.holder import Holder
from trainkit.errors import DeadlineError, EnvironmentFaultError, InputMissingError
from trainkit.storage import Storage
from trainkit.waiting import Deadline, wait_until

__all__ = [
    "Claim",
    "Claims",
    "await_claim",
    "claim",
    "newest_generation",
    "read_holder",
    "refuse_overtaken",
]

log = logging.getLogger(__name__)

_KEPT = 16
"""Claims that stay in the root, to tell who had them; only the newest one is needed."""

_NAME = re.compile(r"(\d{10,18})(?:\.([0-9a-z]+))?")
"""A claim, or something about one: a sign of life, ``released``."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A generation, and the bytes that claimed it."""

    generation: int
    content: bytes

    @property
    def path(self) -> str:
        """Where the claim lies."""
        return claim_path(self.generation)


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a root and what their holders wrote beside them, at one moment."""

    signs: dict[int, frozenset[str]] = field(default_factory=dict)
    """Generation → names of signs of life, and ``released``; of those that are claimed."""
    names: tuple[str, ...] = ()

    @classmethod
    def seen(cls, storage: Storage) -> "Claims":
        """List them; one request."""
        names = storage.names(GENERATIONS)
        found: dict[int, set[str]] = {int(name): set() for name in names if name.isdecimal()}
        for name in names:
            match = _NAME.fullmatch(name)
            if match is not None and match[2] and int(match[1]) in found:
                found[int(match[1])].add(match[2])
        return cls({number: frozenset(signs) for number, signs in found.items()}, tuple(names))

    @property
    def newest(self) -> int:
        """The generation that was claimed last; 0 where none was."""
        return max(self.signs, default=0)


def claim_path(generation: int, sign: str = "") -> str:
    """Where the claim of a generation lies, or a sign of life of its holder."""
    return f"{GENERATIONS}/{generation:010d}" + (f".{sign}" if sign else "")


def claim(storage: Storage, holder: Holder | None = None, *, after: int | None = None) -> Claim:
    """Claim the next generation of a root; a restarted container gets another one.

    Args:
        storage: of the root.
        holder: this process, as others are to see it.
        after: take the generation that follows this one, or fail.

    Raises:
        FileExistsError: with ``after``, another process was faster.
        NoPermissionError: nothing can be written there.
    """
    storage.make_folder(GENERATIONS)
    content = (holder or Holder.here()).to_bytes()
    while True:
        mine = Claim((newest_generation(storage) if after is None else after) + 1, content)
        try:
            storage.create(mine.path, content)
        except FileExistsError:
            if after is not None:
                raise
            continue
        claims = Claims.seen(storage)
        if mine.generation < min(claims.signs.keys() - {mine.generation}, default=0):
            # All that is left is newer, so this number was used before and is forgotten.
            storage.delete(mine.path)
            if after is not None:
                raise FileExistsError(f"{mine.path} was claimed before")
            continue
        _forget_old(storage, claims, mine.generation)
        return mine


def newest_generation(storage: Storage) -> int:
    """The generation that was claimed last; 0 where none was."""
    # Folders count too: a root copied without its dot-names must not start anew.
    folders = (folder.generation for folder in step_folders(storage))
    return max([Claims.seen(storage).newest, *folders])


def read_holder(storage: Storage, generation: int) -> Holder | None:
    """Who claimed ``generation``; None where nobody did, or where it cannot be read."""
    try:
        return Holder.from_bytes(storage.read(claim_path(generation)))
    except InputMissingError:
        return None


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
    """Refuse to save where another process has taken over the root, or begun to save later.

    One listing where all is well. A later claim of the same process is no other run: whoever
    saves first under it wins.

    Raises:
        EnvironmentFaultError: the message names that process, or its folder.
    """
    claims = Claims.seen(storage)
    if generation in claims.signs and claims.newest == generation:
        return
    advice = "Give each run a folder of its own; a run that was restarted has to end first."
    mine = read_holder(storage, generation)
    for number in sorted(n for n in claims.signs if n > generation):
        other = read_holder(storage, number)
        if mine is None or other is None or other.run != mine.run:
            raise EnvironmentFaultError(
                f"another run saves to {storage.url}: {other or 'a process'} has taken over from "
                f"this one, which was taken for dead, with generation {number} after "
                f"{generation}. {advice}"
            )
    newer = [folder for folder in step_folders(storage) if folder.generation > generation]
    if newer:
        raise EnvironmentFaultError(
            f"another run saves to {storage.url}: it wrote {newer[0].name}, and this run has the "
            f"older generation {generation}. {advice}"
        )


def _forget_old(storage: Storage, claims: Claims, newest: int) -> None:
    """Remove old claims but the last few, and signs of life of those that are over."""
    forgotten = set(sorted(claims.signs)[:-_KEPT])
    for name in claims.names:
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) >= newest:
            continue
        if match[2] or int(match[1]) in forgotten:
            storage.delete(f"{GENERATIONS}/{name}")
