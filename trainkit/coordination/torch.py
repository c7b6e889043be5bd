"""torch's TCPStore as our ``Store``: rank 0 (or torchrun's agent) serves it."""

import logging
import time
from datetime import timedelta

import torch.distributed as dist

from trainkit.coordination.network import await_address, port_not_served
from trainkit.errors import RetryableError
from trainkit.waiting import Deadline, backoff

__all__ = ["TorchStore", "connect_store", "serve_store"]

log = logging.getLogger(__name__)

_PAUSE = 0.25
"""Seconds between two questions at most."""


class TorchStore:
    """A ``Store`` on top of any store of torch."""

    def __init__(self, store: dist.Store) -> None:
        self.store = store

    @property
    def host(self) -> str:
        """Name or address of who serves it; of a TCPStore only."""
        return str(self._tcp.host)

    @property
    def port(self) -> int:
        """Where it listens; of a TCPStore only."""
        return int(self._tcp.port)

    @property
    def _tcp(self) -> dist.TCPStore:
        if not isinstance(self.store, dist.TCPStore):
            raise AssertionError(f"{type(self.store).__name__} is not reached over the network")
        return self.store

    def set(self, key: str, value: bytes) -> None:
        """See ``Store.set``."""
        try:
            self.store.set(key, value)  # type: ignore[arg-type]  # bytes are taken too
        except dist.DistError as reason:
            raise _lost(reason) from reason

    def get(self, key: str) -> bytes | None:
        """See ``Store.get``."""
        try:
            return self.store.get(key) if self.store.check([key]) else None
        except dist.DistError as reason:
            raise _lost(reason) from reason

    def _holds(self, key: str) -> bool:
        try:
            return self.store.check([key])
        except dist.DistError as reason:
            raise _lost(reason) from reason

    def wait(self, key: str, seconds: float) -> bool:
        """See ``Store.wait``.

        By asking again and again: each wait of torch's own that is over in vain writes two
        warnings, and no signal is handled meanwhile.
        """
        deadline = Deadline(seconds)
        for pause in backoff(first=0.002, last=_PAUSE):
            if self._holds(key):
                return True
            if deadline.passed:
                return False
            time.sleep(min(pause, deadline.left))
        raise AssertionError("pauses ended")  # pragma: no cover - backoff() never ends

    def add(self, key: str, amount: int) -> int:
        """See ``Store.add``."""
        try:
            return self.store.add(key, amount)
        except dist.DistError as reason:
            raise _lost(reason) from reason

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        try:
            self.store.delete_key(key)
        except dist.DistError as reason:
            raise _lost(reason) from reason

    def close(self) -> None:
        """torch hangs up once nothing refers to its store any more."""


def serve_store(port: int, deadline: Deadline) -> TorchStore:
    """Serve a store on ``port`` of this host (0: a free one) and connect to it.

    The own connection goes over loopback: a pod's public name may resolve only later.

    Raises:
        EnvironmentFaultError: the port is taken; the message names it and, where it can be
            seen, who holds it.
    """
    try:
        tcp = dist.TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=deadline.seconds),
        )
    except dist.DistNetworkError as reason:
        text = str(reason)
        if "EADDRINUSE" not in text and "in use" not in text:
            raise _lost(reason) from reason
        raise port_not_served(port, text) from None
    return TorchStore(tcp)


def connect_store(host: str, port: int, who: str, deadline: Deadline) -> TorchStore:
    """Connect to the store that another process serves, once its name and port are there.

    Args:
        host: name or address of the server.
        port: its port.
        who: this process, for messages.
        deadline: until when name and port have to be there.

    Raises:
        DeadlineError: name or port did not appear; the message names both.
    """
    await_address(host, port, who=who, deadline=deadline)
    try:
        tcp = dist.TCPStore(
            host,
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(deadline.left, 1.0)),
        )
    except dist.DistError as reason:
        raise _lost(reason) from reason
    return TorchStore(tcp)


def _lost(reason: Exception) -> RetryableError:
    first = str(reason).partition("\n")[0]
    return RetryableError(
        f"the store that the ranks share is lost ({first}). Rank 0 or its host went away; "
        f"look at the log of rank 0 for the first error."
    )
