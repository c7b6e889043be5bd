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

import itertools
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Collection
from dataclasses import dataclass

from trainkit.checkpoint.format.layout import GENERATIONS
from trainkit.checkpoint.save.generation import (
    Claim,
    Claims,
    claim,
    claim_path,
    newest_generation,
    read_holder,
)
from trainkit.checkpoint.save.holder import Holder
from trainkit.checkpoint.save.releasing import has_to_be_another, release, release_from_another
from trainkit.errors import EnvironmentFaultError, TrainkitError
from trainkit.storage import Storage
from trainkit.waiting import Deadline

__all__ = ["Lease", "LeaseTimes", "release_all", "take_lease"]

log = logging.getLogger(__name__)

_RELEASED = "released"
_RELEASE_TIME = 10.0
"""Seconds that a release may take before its process goes on without it."""
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

    def __init__(self, claimed: Claim, hold: "_Hold") -> None:
        self.claim = claimed
        self._hold = hold
        self._let_go = weakref.finalize(self, hold.drop, claimed.generation)
        self._let_go.atexit = False  # `release_all` is for that

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
        hold = _hold_of(holder)
        try:
            if hold is not None and hold.join(newest + 1):
                return _joined(storage, hold, newest)
            if newest not in known_dead:
                _await_end(storage, newest, holder, times)
            hold = _Hold(storage, times)
            hold.join(newest + 1)
            return Lease(hold.begin(after=newest), hold)
        except FileExistsError:
            log.debug("generation %d of %s was taken by another", newest + 1, storage.url)


def _joined(storage: Storage, hold: "_Hold", newest: int) -> Lease:
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
    watch = _Watch(storage, generation, holder, times)
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


class _Watch:
    """Looks at the signs of life of one holder."""

    def __init__(
        self, storage: Storage, generation: int, holder: Holder | None, times: LeaseTimes
    ) -> None:
        self._storage = storage
        self._generation = generation
        self._holder = holder
        self._patience = Deadline(times.patience)
        self._signs: frozenset[str] | None = None
        self._still_since = 0.0
        self._seen_alive = False
        self.silence = max(times.silence, holder.silence if holder is not None else 0.0)

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
        if signs is None or claims.newest != self._generation or _RELEASED in signs:
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


class _Hold:
    """Keeps giving signs of life while there are leases of this process on the root."""

    def __init__(self, storage: Storage, times: LeaseTimes) -> None:
        self._storage = storage
        self._holder = Holder.here(silence=times.silence)
        self._renewal = times.renewal
        self._generation = 0
        self._sign = ""
        self._count = itertools.count(1)
        # Re-entrant, since leases may be dropped by the garbage collector at any point.
        self._lock = threading.RLock()
        self._leases: set[int] = set()
        self._ending = threading.Event()
        self._by_another = False
        self._thread = threading.Thread(target=self._run, name="trainkit-lease", daemon=True)

    @property
    def run(self) -> str:
        """What all claims of this hold have in common."""
        return self._holder.run

    @property
    def is_ours(self) -> bool:
        """False in a child that was forked from the holder."""
        return self._holder.pid == os.getpid()

    def begin(self, *, after: int) -> Claim:
        """Take the root.

        Raises:
            FileExistsError: another process was faster.
        """
        taken = claim(self._storage, self._holder, after=after)
        self._generation = taken.generation
        _holds.add(self)
        self._thread.start()
        return taken

    def move(self, storage: Storage, *, after: int) -> Claim:
        """Claim the next generation as well, and give signs of life through ``storage``.

        Raises:
            FileExistsError: another thread was faster.
        """
        taken = claim(storage, self._holder, after=after)
        with self._lock:
            self._generation = max(self._generation, taken.generation)
            self._storage = storage
        return taken

    def join(self, generation: int) -> bool:
        """Count one more lease; False where the last one has gone already."""
        with self._lock:
            self._leases.add(generation)
            if self._ending.is_set() or not self.is_ours:
                self._leases.discard(generation)
                return False
            return True

    def drop(self, generation: int) -> None:
        """Count one lease less; with the last one the root is released, by the thread."""
        with self._lock:
            self._leases.discard(generation)
            if not self._leases and self.is_ours:
                self._ending.set()

    def end(self, *, at_exit: bool) -> None:
        """Release the root whatever leases there are."""
        if not self.is_ours:
            return
        self._by_another = at_exit and has_to_be_another(self._storage)
        self._ending.set()
        self.await_end()

    def await_end(self) -> None:
        """Wait until others see the release, if no lease is left."""
        if self.is_ours and self._ending.is_set() and self._thread.ident is not None:
            self._thread.join(_RELEASE_TIME)

    def _run(self) -> None:
        try:
            while not self._ending.wait(self._renewal):
                if self._is_lost():
                    self._ending.set()
                    return
                self._renew()
            self._release()
        finally:
            _holds.discard(self)

    def _renew(self) -> None:
        sign = claim_path(self._generation, f"{next(self._count):08d}")
        try:
            self._storage.create(sign, b"")
            old, self._sign = self._sign, sign
            if old:
                self._storage.delete(old)
        except (OSError, TrainkitError) as error:
            log.warning("a sign of life could not be written to %s: %s", self._storage.url, error)

    def _is_lost(self) -> bool:
        """Whether another process has taken the root over."""
        try:
            newest = Claims.seen(self._storage).newest
            if newest <= self._generation:
                return False
            other = read_holder(self._storage, newest)
        except (OSError, TrainkitError) as error:
            log.debug("the claims of %s could not be read: %s", self._storage.url, error)
            return False
        if other is not None and other.run == self.run:
            return False
        log.error(
            "%s was taken over by another run (%s), since this one gave no sign of life for too "
            "long; its next save will fail",
            self._storage.url,
            other or "whose claim cannot be read",
        )
        return True

    def _release(self) -> None:
        try:
            self._say_released()
        except (OSError, TrainkitError) as error:
            log.warning(
                "%s could not be released (%s); the next run may have to wait %.0f s",
                self._storage.url,
                error,
                self._holder.silence,
            )

    def _say_released(self) -> None:
        released = claim_path(self._generation, _RELEASED)
        if not self._by_another:
            try:
                release(self._storage, released, self._sign)
                return
            except OSError as error:
                # The last lease may have gone just before the process came to its end.
                if not has_to_be_another(self._storage):
                    raise
                log.debug("%s is to be released by another process: %s", self._storage.url, error)
        release_from_another(self._storage.url, released, self._sign, _RELEASE_TIME / 2)


_holds: set[_Hold] = set()
"""Those of this process, and in a forked child those of its parent."""


def _hold_of(holder: Holder | None) -> _Hold | None:
    """The hold of this process that made a claim, which a second lease shares."""
    if holder is None:
        return None
    return next((hold for hold in list(_holds) if hold.run == holder.run and hold.is_ours), None)


def release_all(*, at_exit: bool = False) -> None:
    """Release all roots that this process has; done at exit."""
    for hold in list(_holds):
        hold.end(at_exit=at_exit)


# The first finalizer to be made here is the last to be called at exit: after those that wait for
# a save to be committed, and after those that only let go.
weakref.finalize(_Hold, release_all, at_exit=True)
