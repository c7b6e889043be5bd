"""Forks that are made before they are needed, and wait to be told which rank they are."""

import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from trainkit.launch.messages import receive, send
from trainkit.launch.rank import become_rank
from trainkit.processes.dying import DyingWatch
from trainkit.processes.kernel import die_with_parent
from trainkit.processes.program import default_signals

__all__ = ["Spares"]


class Spares:
    """Of one process that forks ranks; none of them outlives it."""

    def __init__(self, close_files: Callable[[], None], dying: DyingWatch | None) -> None:
        """Begin without any.

        Args:
            close_files: closes in a fork what belongs to its parent.
            dying: tells the launcher when a rank begins to die.
        """
        self._dying = dying
        self._pid = os.getpid()
        self._close_files = close_files
        self._waiting: dict[int, socket.socket] = {}
        self._lost: set[int] = set()

    def fork(self, count: int) -> None:
        """Fork until ``count`` of them wait, or the system has no more processes to give."""
        while len(self._waiting) < count:
            ours, theirs = socket.socketpair()
            try:
                pid = os.fork()
            except OSError:  # whoever needs it will say so
                ours.close()
                theirs.close()
                return
            if pid == 0:
                try:
                    self.close_files()
                    ours.close()
                    self._await_orders(theirs)
                finally:
                    os._exit(1)
            theirs.close()
            self._waiting[pid] = ours

    def employ(self, message: dict[str, Any], files: list[int]) -> int:
        """Make one of them the rank that ``message`` describes; its process id, or 0 without."""
        while self._waiting:
            pid = next(iter(self._waiting))
            with self._waiting.pop(pid) as orders:
                try:
                    send(orders, message, files)
                    return pid
                except OSError:  # somebody has killed it
                    self._lost.add(pid)
        return 0

    def forget(self, pid: int) -> bool:
        """Whether ``pid`` was one of them; it is not any more. One that still waits ends."""
        orders = self._waiting.pop(pid, None)
        if orders is not None:
            orders.close()
        lost = pid in self._lost
        self._lost.discard(pid)
        return lost or orders is not None

    def dismiss(self) -> set[int]:
        """End all that wait, and return their process ids."""
        pids = set(self._waiting)
        for pid in pids:
            self.forget(pid)
        return pids

    def close_files(self) -> None:
        """In a fork: close what is its parent's; ends of sockets kept open would hide its end."""
        self._close_files()
        for orders in self._waiting.values():
            orders.close()

    def become(self, message: dict[str, Any], files: list[int], nursery: int) -> NoReturn:
        """Turn this fork into the rank that ``message`` describes."""
        if message["slot"] and self._dying is not None:
            self._dying.hold(message["slot"])
        become_rank(message, dict(zip(message["files"], files, strict=True)), nursery)

    def _await_orders(self, orders: socket.socket) -> NoReturn:
        die_with_parent()
        default_signals()
        try:
            message, files = receive(orders)
        except OSError:
            message = None
        if message is None:
            os._exit(0)
        orders.close()
        self.become(message, files, self._pid)
