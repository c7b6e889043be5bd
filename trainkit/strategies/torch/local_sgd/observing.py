"""A process whose end is the job's, and that does nothing else: MXNet's scheduler."""

import logging
import time

from trainkit.errors import DeadlineError
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.frames import Kind, await_frame, packed
from trainkit.strategies.torch.local_sgd.sockets import connected
from trainkit.topology import Topology
from trainkit.waiting import Deadline

__all__ = ["is_observed", "observe_end"]

log = logging.getLogger(__name__)

_EVERY = 0.1
"""Seconds between two attempts to reach the server."""


def is_observed(topology: Topology) -> bool:
    """Whether the job has such a process, so that the first server may not end untold."""
    return topology.platform == "mxjob" and topology.master_addr is not None


def observe_end(addresses: list[Address], timeout: float) -> None:
    """Return when the job is over; the first server knows, and says so to all that are connected.

    Raises:
        DeadlineError: that server was not there for ``timeout`` seconds.
    """
    host, port = addresses[0]
    log.info("waiting for the end of the job, of which ps 0 at %s:%d knows", host, port)
    deadline, last, seen = Deadline(timeout), "not tried yet", "never came"
    while not deadline.passed:
        try:
            _await_over(addresses[0])
            return
        except ConnectionResetError as reason:  # it was there
            deadline, last, seen = Deadline(timeout), str(reason), "was there, and is gone"
            log.warning("ps 0 at %s:%d is lost (%s): waiting until it is back", host, port, reason)
        except OSError as reason:
            last = str(reason)
        time.sleep(_EVERY)
    raise DeadlineError(
        f"ps 0 at {host}:{port} {seen}: no answer for {timeout:.0f} s ({last}). Look at its log; "
        f"TRAINKIT_TIMEOUT sets the seconds."
    )


def _await_over(address: Address) -> None:
    """Return when the server at ``address`` says that the job is over.

    Raises:
        ConnectionResetError: it was there, and is gone.
        OSError: it cannot be reached.
    """
    connection = connected(address)
    try:
        connection.sendall(packed(Kind.CONTROL, meta={"what": "observe"}))
        if not await_frame(connection, Kind.ANSWER).meta["over"]:
            connection.settimeout(None)  # the kernel finds out where the other host is gone
            await_frame(connection, Kind.OVER)
    except TimeoutError as reason:
        raise ConnectionResetError(str(reason)) from None
    finally:
        connection.close()
