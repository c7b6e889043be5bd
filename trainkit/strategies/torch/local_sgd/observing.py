"""A process whose end is the job's, and that does nothing else: MXNet's scheduler."""

import logging
import time

from trainkit.errors import DeadlineError
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.link import ControlLink
from trainkit.waiting import Deadline

__all__ = ["observe_end"]

log = logging.getLogger(__name__)

_EVERY = 1.0
"""Seconds between two looks."""


def observe_end(addresses: list[Address], timeout: float) -> None:
    """Return when the job is over; the first server knows.

    Raises:
        DeadlineError: that server was not there for ``timeout`` seconds.
    """
    host, port = addresses[0]
    link = ControlLink(addresses[0], -1, timeout=5.0)
    log.info("waiting for the end of the job, of which ps 0 at %s:%d knows", host, port)
    deadline, last = Deadline(timeout), "not tried yet"
    met = False
    while True:
        try:
            if link.ask(what="asked")["over"]:
                link.close()
                return
            deadline, met = Deadline(timeout), True
        except OSError as reason:
            last = str(reason)
        if deadline.passed:
            seen = "was there, and is gone" if met else "never came"
            raise DeadlineError(
                f"ps 0 at {host}:{port} {seen}: no answer for {timeout:.0f} s ({last}). Look at "
                f"its log; TRAINKIT_TIMEOUT sets the seconds."
            )
        time.sleep(_EVERY)
