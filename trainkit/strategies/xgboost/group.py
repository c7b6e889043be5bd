"""XGBoost's communicator of one thread, and its tracker, which rank 0 runs."""

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

from xgboost import collective
from xgboost.core import XGBoostError
from xgboost.tracker import RabitTracker

from trainkit.coordination import Communicator
from trainkit.coordination.network import interface_towards
from trainkit.errors import EnvironmentFaultError
from trainkit.topology import Topology

__all__ = ["Group", "address_for_all"]

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_GOODBYE = 30
"""Seconds that rank 0 keeps the tracker for ranks that are still ending."""
_THREAD_START = 0.002
"""Seconds for the tracker's thread to be there: XGBoost itself looks every 0.1 s."""


def address_for_all(communicator: Communicator, topology: Topology) -> str:
    """An address of rank 0 under which all ranks reach it, and it itself; the same on all ranks.

    The tracker tells each rank the address from which its neighbour came, so rank 0 must not
    come by a loopback address unless all do. Nor does the master's name serve: on a host with
    Debian's ``127.0.1.1 name`` in /etc/hosts, or with hostNetwork, rank 0's own name leads to
    loopback there.
    """
    towards_master = None
    if topology.master_addr is not None and communicator.rank != 0:
        towards_master = interface_towards(topology.master_addr, topology.master_port or 0)
    addresses = communicator.all_gather_object(towards_master[1] if towards_master else None)
    peer = next((address for address in addresses if address is not None), None)
    own = None
    if communicator.rank == 0 and peer is not None:
        towards_peer = interface_towards(peer, 0)
        # None: the peer is on this very host, and reached us by an address that is ours too
        own = towards_peer[1] if towards_peer else peer
    address: str = communicator.broadcast_object(own) or _LOOPBACK
    return address


class Group:
    """The calling thread's place among the ranks; XGBoost keeps it per thread."""

    def __init__(self, context: Any, tracker: Any) -> None:
        """Wrap what is connected already; ``open`` connects."""
        self._context = context
        self._tracker = tracker

    @classmethod
    def open(cls, communicator: Communicator, address: str, timeout: float) -> "Group":
        """Meet the other ranks, each of which must call this too.

        The tracker is up before anybody is told of it: a rank that finds none waits 2 s and
        then 4 s before it tries again.

        Args:
            communicator: of this rank, for telling where the tracker listens.
            address: of rank 0, as ``address_for_all`` returns it.
            timeout: seconds of each collective of XGBoost, and of getting into the group.

        Raises:
            XGBoostError: a rank went away, or did not come in time.
            EnvironmentFaultError: the group is not the one that the job asks for.
        """
        tracker = None
        if communicator.rank == 0:
            # No timeout of its own: it would also count between the ends of two ranks.
            tracker = RabitTracker(
                n_workers=communicator.world_size, host_ip=address, port=0, sortby="task"
            )
            tracker.start()
            time.sleep(_THREAD_START)
        port = tracker.worker_args()["dmlc_tracker_port"] if tracker is not None else None
        port = communicator.broadcast_object(port)
        context = collective.CommunicatorContext(
            dmlc_tracker_uri=address,
            dmlc_tracker_port=port,
            # Sorted as text, so that without leading zeros task 10 becomes rank 2.
            dmlc_task_id=f"{communicator.rank:08d}",
            dmlc_timeout=max(1, math.ceil(timeout)),
        )
        group = cls(context, tracker)
        try:
            with _quiet():
                context.__enter__()
        except BaseException:
            group.free_tracker()
            raise
        group._check(communicator)
        return group

    def _check(self, communicator: Communicator) -> None:
        found = collective.get_rank(), collective.get_world_size()
        wanted = communicator.rank, communicator.world_size
        if found != wanted:
            self.close()
            raise EnvironmentFaultError(
                f"XGBoost takes this process for rank {found[0]} of {found[1]}, and it is rank "
                f"{wanted[0]} of {wanted[1]}. Is a communicator of XGBoost opened beside "
                f"trainkit's? Leave that to trainkit.run."
            )

    def close(self) -> None:
        """Leave in order, from the thread that opened it; rank 0 keeps the tracker until all have.

        Raises:
            XGBoostError: the tracker is gone.
        """
        with _quiet():
            collective.finalize()
        if self._tracker is None:
            return
        try:
            self._tracker.wait_for(timeout=_GOODBYE)
        except (XGBoostError, ValueError):
            log.warning("not all ranks left XGBoost's tracker within %d s", _GOODBYE)
        self.free_tracker()

    def abandon(self, *, finalize: bool) -> None:
        """Leave after a failure, so that nobody goes on waiting for this rank.

        Args:
            finalize: whether rank 0 is alive, so that its tracker answers: one that is there
                and silent would hold this rank up for as long as a collective may take.

        The tracker stays until ``free_tracker``: the others say goodbye there, and a rank that
        finds it gone tries for 12 s.
        """
        if finalize:
            with _quiet(), contextlib.suppress(XGBoostError):
                collective.finalize()

    def free_tracker(self) -> None:
        """End the tracker, where this rank runs it."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            # Its thread tells what it met at the end, which by now is no news.
            with contextlib.suppress(XGBoostError):
                tracker.free()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what XGBoost's sockets have to say, as warnings of Python, of peers that are gone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
