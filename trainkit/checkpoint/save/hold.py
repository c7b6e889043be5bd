"""Signs of life: what this process writes to a root for as long as it has leases on it."""

import itertools
import logging
import os
import threading
import weakref

from trainkit.checkpoint.save.generation import Claim, Claims, claim, claim_path, read_holder
from trainkit.checkpoint.save.holder import Holder
from trainkit.checkpoint.save.releasing import has_to_be_another, release, release_from_another
from trainkit.errors import TrainkitError
from trainkit.storage import Storage

__all__ = ["RELEASED", "Hold", "hold_of", "release_all"]

log = logging.getLogger(__name__)

RELEASED = "released"
"""The last sign of life: the holder has ended, and others need not wait."""

_RELEASE_TIME = 10.0
"""Seconds that a release may take before its process goes on without it."""


class Hold:
    """Keeps giving signs of life while there are leases of this process on the root."""

    def __init__(self, storage: Storage, *, silence: float, renewal: float) -> None:
        """Prepare; ``begin`` takes the root.

        Args:
            storage: of the root.
            silence: seconds without a sign of life after which others may take this process for
                dead.
            renewal: seconds between two signs.
        """
        self._storage = storage
        self._holder = Holder.here(silence=silence)
        self._renewal = renewal
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
        released = claim_path(self._generation, RELEASED)
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


_holds: set[Hold] = set()
"""Those of this process, and in a forked child those of its parent."""


def hold_of(holder: Holder | None) -> Hold | None:
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
weakref.finalize(Hold, release_all, at_exit=True)
