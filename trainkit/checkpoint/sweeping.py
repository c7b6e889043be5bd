"""Old checkpoints go after a newer one is there, beside training where saves are."""

import logging
import threading

from trainkit.checkpoint.save.retention import Retention
from trainkit.errors import TrainkitError

__all__ = ["Sweeper"]

log = logging.getLogger(__name__)


class Sweeper:
    """Applies retention, one time after the other; a failure costs space alone."""

    def __init__(self, retention: Retention, *, background: bool) -> None:
        """Nothing is removed yet.

        Args:
            retention: removes what need not stay.
            background: whether in a thread.
        """
        self._retention = retention
        self._background = background
        self._thread: threading.Thread | None = None

    def sweep(self) -> None:
        """Remove old checkpoints, once the time before is over."""
        self.wait()
        if not self._background:
            self._remove_old()
            return
        self._thread = threading.Thread(target=self._remove_old, name="trainkit-retention")
        self._thread.start()

    def wait(self) -> None:
        """Wait until old checkpoints are removed, if that is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _remove_old(self) -> None:
        try:
            self._retention.apply()
        except (OSError, TrainkitError) as error:
            log.warning("old checkpoints could not be removed: %s", error)
