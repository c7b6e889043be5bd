"""Ranks forked from a trial server, which serves them a store and hears what they say.

The server has one thread, so that a fork is safe and takes 2 ms, and so that there is one order
of events: a rank that says "acknowledged" has said it before its death is seen.
"""

import contextlib
import ctypes
import os
import pickle
import select
import signal
import socket
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from trainkit.coordination import Communicator
from trainkit.errors import TrainkitError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MESSAGE = 1 << 17


class RankSide:
    """What a rank has of its group; also its store."""

    def __init__(self, line, rank, world):
        self._line, self.rank, self.world = line, rank, world

    def communicator(self, timeout=60.0):
        """A communicator of the group's ranks."""
        return Communicator(self, self.rank, self.world, timeout=timeout)

    def tell(self, kind, value=None):
        """Say something to the server; on return the server has it, whatever comes next."""
        self._line.send(pickle.dumps((kind, value)))

    def stop_here(self):
        """Tell the server, and stop this process until it is continued."""
        self.tell("stopped", os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)

    def await_word(self):
        """Wait for the server to say something."""
        return pickle.loads(self._line.recv(_MESSAGE))

    def set(self, key, value):
        """See ``Store.set``."""
        self._ask("set", key, value)

    def get(self, key):
        """See ``Store.get``."""
        return self._ask("get", key)

    def wait(self, key, seconds):
        """See ``Store.wait``."""
        return self._ask("wait", key, seconds)

    def add(self, key, amount):
        """See ``Store.add``."""
        return self._ask("add", key, amount)

    def delete(self, key):
        """See ``Store.delete``."""
        self._ask("delete", key)

    def _ask(self, *request):
        self.tell("store", request)
        return self.await_word()


@dataclass
class Member:
    """A rank as the server sees it."""

    pid: int
    line: socket.socket
    pidfd: int
    said: list = field(default_factory=list)
    status: int | None = None
    """Exit code, or minus the number of the signal; None while it runs."""

    def heard(self, kind):
        """The values that it said with ``kind``."""
        return [value for what, value in self.said if what == kind]


class Group:
    """Ranks that run one function. A context manager: none is left at its end."""

    def __init__(self, world, main, *, held=False):
        """Fork ``world`` ranks that run ``main(rank_side)``.

        Args:
            world: number of ranks.
            main: what it returns is said as "value", what it raises as "error".
            held: whether they wait for `let_go`.
        """
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._values, self._waiting = {}, []
        self.members = []
        for rank in range(world):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                try:
                    ours.close()
                    _become_rank(RankSide(theirs, rank, world), main, held)
                finally:
                    os._exit(1)
            theirs.close()
            self.members.append(Member(pid, ours, os.pidfd_open(pid)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.serve(self.ended, 30.0)
        for member in self.members:
            member.line.close()
            os.close(member.pidfd)

    def let_go(self):
        """Start ranks that were held."""
        for member in self.members:
            member.line.send(pickle.dumps("go"))

    def kill(self, *ranks):
        """SIGKILL to these ranks and what they started; to all by default."""
        for rank, member in enumerate(self.members):
            if member.status is None and (not ranks or rank in ranks):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)  # it may have had no time for a group

    def resume(self, rank):
        """Continue what stopped itself: the rank, or the process that writes for it."""
        for pid in (*self.members[rank].heard("stopped"), self.members[rank].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def await_stop(self, rank, timeout=60.0):
        """Wait until ``rank``, or its writer, has stopped itself; False if it ended instead."""
        member = self.members[rank]
        self.serve(lambda: member.heard("stopped") or member.status is not None, timeout)
        if not member.heard("stopped"):
            return False
        (pid,) = member.heard("stopped")
        self.serve(lambda: _state(pid) in "TXZ", timeout, pause=0.002)
        return True

    def ended(self):
        """Whether all have."""
        return all(member.status is not None for member in self.members)

    def finish(self, timeout=60.0):
        """Serve until all have ended, and the processes that wrote for them; the members."""
        self.serve(self.ended, timeout)
        # They are this server's children now, and see that nobody waits for them any more.
        end = time.monotonic() + timeout
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self.members
            if pid == 0:
                if time.monotonic() > end:
                    raise TimeoutError("I5: a writer outlives its rank")
                time.sleep(0.001)

    def serve(self, until, timeout, *, strict=True, pause=60.0):
        """Serve the store until a condition holds.

        Args:
            until: the condition.
            timeout: seconds at most.
            strict: whether it is an error if they pass.
            pause: seconds after which to look again, though no rank has said anything.

        Raises:
            TimeoutError: it did not within ``timeout`` seconds, where ``strict``.
        """
        end = time.monotonic() + timeout
        while not until():
            left = end - time.monotonic()
            if left <= 0:
                if strict:
                    raise TimeoutError(f"I5: ranks hang: {[m.said[-1:] for m in self.members]}")
                return False
            self._step(min(left, pause))
        return True

    def _step(self, left):
        open_lines = {m.line: m for m in self.members if m.status is None}
        by_pidfd = {m.pidfd: m for m in self.members if m.status is None}
        moments = [end - time.monotonic() for _, _, end in self._waiting]
        ready, _, _ = select.select(
            [*open_lines, *by_pidfd], [], [], max(0.0, min([left, *moments]))
        )
        for one in ready:
            if one in open_lines:
                self._receive(open_lines[one])
        for one in ready:
            if one in by_pidfd:
                self._reap(by_pidfd[one])
        now = time.monotonic()
        for entry in [e for e in self._waiting if e[1] in self._values or e[2] <= now]:
            self._waiting.remove(entry)
            _reply(entry[0], entry[1] in self._values)

    def _receive(self, member):
        try:
            data = member.line.recv(_MESSAGE)
        except ConnectionResetError:
            return
        if not data:
            return
        kind, value = pickle.loads(data)
        if kind != "store":
            member.said.append((kind, value))
            return
        operation, key, *rest = value
        if operation == "wait":
            if key in self._values:
                _reply(member, True)
            else:
                self._waiting.append((member, key, time.monotonic() + rest[0]))
            return
        _reply(member, self._answer(operation, key, *rest))

    def _answer(self, operation, key, value=None):
        if operation == "get":
            return self._values.get(key)
        if operation == "delete":
            return self._values.pop(key, None) and None
        if operation == "add":
            value = str(int(self._values.get(key, b"0")) + value).encode()
        self._values[key] = value
        return int(value) if operation == "add" else None

    def _reap(self, member):
        # What it said before it died is still in the line.
        member.line.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := member.line.recv(_MESSAGE):
                kind, value = pickle.loads(data)
                if kind != "store":
                    member.said.append((kind, value))
        member.status = os.waitstatus_to_exitcode(os.waitpid(member.pid, 0)[1])
        # What it started is in its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(member.pid, signal.SIGKILL)


def _state(pid):
    """The letter of a process's state; X where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _reply(member, answer):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        member.line.send(pickle.dumps(answer))


def _become_rank(side, main, held):
    server = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        return
    os.setsid()
    try:
        if held:
            side.await_word()
        side.tell("value", main(side))
    except (Exception, TrainkitError) as error:
        number = getattr(error, "errno", None)
        side.tell(
            "error", (type(error).__name__, number, str(error), traceback.format_exc()[-3000:])
        )
    os._exit(0)
