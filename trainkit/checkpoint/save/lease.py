"""One run at a time in a checkpoint root: taken at the start, kept by signs of life.

Storages know one atomic operation, the creation of an object that must not exist, and no clock
that hosts share. So the root belongs to whoever has the newest generation, claims of which are
created exclusively, one after the other. Its process creates a new, empty object beside the claim
every few seconds, and ``released`` when it closes. Who comes later watches these names: if they
change, the holder is alive, and if nothing changes for as long as the holder's claim says, it is
dead; no wall clock is compared. On the holder's own host the process table tells at once.

A holder that was only asleep finds the newer claim before it commits its next checkpoint, and
fails (``refuse_overtaken``).
"""

import logging
import time
import weakref
from collections.abc import Collection
from dataclasses import dataclass

from trainkit.checkpoint.save.generation import Claim, newest_generation, read_holder
from trainkit.checkpoint.save.hold import Hold, hold_of
from trainkit.checkpoint.save.holder import Holder
from trainkit.checkpoint.save.holder_watch import HolderWatch
from trainkit.storage import Storage

__all__ = ["Lease", "LeaseTimes", "take_lease"]

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at a holder's signs of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds of a lease."""

    silence: float
    """Without a sign of life for so long, a holder is taken for dead."""
    renewal: float
    """Between two signs of life."""
    patience: float
    """How long a holder that is alive is given to end, before the newcomer is refused."""


class Lease:
    """This process's hold on a root; ends by ``release``, with the object, or at exit."""

    def __init__(self, claimed: Claim, hold: Hold) -> None:
        self.claim = claimed
        self._hold = hold
        self._let_go = weakref.finalize(self, hold.drop, claimed.generation)
        self._let_go.atexit = False  # `hold.release_all` is for that

    def release(self) -> None:
        """Leave the root to others; returns when they can see it. Any number of times."""
        self._let_go()
        self._hold.await_end()


def take_lease(storage: Storage, times: LeaseTimes, *, known_dead: Collection[int] = ()) -> Lease:
    """Claim the next generation of a root once nobody else has it.

    Args:
        storage: of the root.
        times: seconds.
        known_dead: generations whose holder is dead, as another rank on its host could tell.

    Raises:
        EnvironmentFaultError: another run has it and is alive; the message names it.
        NoPermissionError: nothing can be written there.
    """
    while True:
        newest = newest_generation(storage)
        holder = read_holder(storage, newest)
        hold = hold_of(holder)
        try:
            if hold is not None and hold.join(newest + 1):
                return _joined(storage, hold, newest)
            if newest not in known_dead:
                _await_end(storage, newest, holder, times)
            hold = Hold(storage, silence=times.silence, renewal=times.renewal)
            hold.join(newest + 1)
            return Lease(hold.begin(after=newest), hold)
        except FileExistsError:
            log.debug("generation %d of %s was taken by another", newest + 1, storage.url)


def _joined(storage: Storage, hold: Hold, newest: int) -> Lease:
    """A second lease of this process, under the next generation."""
    try:
        return Lease(hold.move(storage, after=newest), hold)
    except BaseException:
        hold.drop(newest + 1)
        raise


def _await_end(storage: Storage, generation: int, holder: Holder | None, times: LeaseTimes) -> None:
    """Wait until the holder has ended, is dead, or is overtaken by another.

    Raises:
        EnvironmentFaultError: it is alive, and does not end.
    """
    watch = HolderWatch(storage, generation, holder, silence=times.silence, patience=times.patience)
    if watch.is_over():
        return
    log.warning(
        "%s belongs to another run (%s); waiting until it ends, or has given no sign of life for "
        "%.0f s",
        storage.url,
        watch.name,
        watch.silence,
    )
    while not watch.is_over():
        time.sleep(min(_LOOK, times.renewal / 2, watch.silence / 10))
    log.warning("%s is taken over from %s", storage.url, watch.name)
