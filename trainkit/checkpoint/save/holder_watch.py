"""Whether the holder of a root is alive, as another process can tell."""

import time
import uuid

from trainkit.checkpoint.format.layout import GENERATIONS
from trainkit.checkpoint.save.generation import Claims
from trainkit.checkpoint.save.hold import RELEASED
from trainkit.checkpoint.save.holder import Holder
from trainkit.errors import EnvironmentFaultError
from trainkit.storage import Storage
from trainkit.waiting import Deadline

__all__ = ["HolderWatch"]


class HolderWatch:
    """Looks at the signs of life of one holder."""

    def __init__(
        self,
        storage: Storage,
        generation: int,
        holder: Holder | None,
        *,
        silence: float,
        patience: float,
    ) -> None:
        """Begin to look.

        Args:
            storage: of the root.
            generation: that the holder has claimed.
            holder: who that is; None where its claim cannot be read.
            silence: seconds without a sign of life after which it is taken for dead, if its
                claim does not ask for more.
            patience: seconds that it is given to end if it is alive.
        """
        self._storage = storage
        self._generation = generation
        self._holder = holder
        self._patience = Deadline(patience)
        self._signs: frozenset[str] | None = None
        self._still_since = 0.0
        self._seen_alive = False
        self.silence = max(silence, holder.silence if holder is not None else 0.0)

    @property
    def name(self) -> str:
        """The holder, for people."""
        return str(self._holder or "a process whose claim cannot be read")

    def is_over(self) -> bool:
        """Whether the root is free to be claimed, or was just claimed by a third one.

        Raises:
            EnvironmentFaultError: the holder is alive, and has had time to end.
        """
        began = time.monotonic()
        signs = self._look()
        if signs is None or (self._holder is not None and self._ended(self._holder)):
            return True
        if signs != self._signs:
            self._seen_alive = self._signs is not None
            self._signs = signs
            self._still_since = time.monotonic()
        if self._seen_alive and self._patience.passed:
            raise EnvironmentFaultError(
                f"{self._storage.url} is in use by another run, which is alive: {self.name}. Two "
                f"runs in one folder would take each other's checkpoints for their own. Give this "
                f"run a folder of its own, or end the other one first. Only to read checkpoints, "
                f"use CheckpointOptions(read_only=True)."
            )
        if began - self._still_since < self.silence:
            return False
        # A network file system may show an old listing until something is changed in the folder.
        self._touch()
        return self._look() in (None, signs)

    def _look(self) -> frozenset[str] | None:
        """Signs of the holder; None where it has released the root, or has it no more."""
        claims = Claims.seen(self._storage)
        signs = claims.signs.get(self._generation)
        if signs is None or claims.newest != self._generation or RELEASED in signs:
            return None
        return signs

    @staticmethod
    def _ended(holder: Holder) -> bool:
        # This process itself, which holds it no more or would have been asked to share.
        return holder.fate() == "dead" or holder.is_this_process()

    def _touch(self) -> None:
        path = f"{GENERATIONS}/look-{uuid.uuid4().hex}"
        self._storage.create(path, b"")
        self._storage.delete(path)
