"""Watches from outside while TensorFlow connects the workers, and ends a rank that waits in vain.

TensorFlow waits for the other workers without a deadline, and holds Python's lock meanwhile, so
that nothing in the process itself can find out that one of them has gone. This file is run by its
path in a process of its own, without trainkit and with the standard library alone, for speed.
"""

import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["connect_guarded"]

_GONE = 30.0
"""Seconds in which nobody listens at a worker's address, after which it counts as gone: all had
met a moment before."""
_EVERY = 2.0
"""Seconds between two looks; the first is often not needed any more."""
_FALLBACK = 10.0
"""Seconds after the deadline until a rank ends by itself that the guard could not end: the first
process of a container is not killed by signals from inside."""


@contextmanager
def connect_guarded(peers: Mapping[str, str], timeout: float) -> Iterator[None]:
    """End this process if the block does not connect to ``peers``; it cannot do so itself.

    It is killed, which every operator takes for worth another try, after a message that names
    who is gone.

    Args:
        peers: address (host:port) of every other worker, by its name.
        timeout: seconds for all of it.
    """
    plan = {"pid": os.getpid(), "timeout": timeout, "peers": dict(peers)}
    guard = subprocess.Popen(  # noqa: S603 - this file, by the interpreter that runs us
        [sys.executable, "-I", "-S", __file__, json.dumps(plan)], stdin=subprocess.PIPE
    )
    faulthandler.dump_traceback_later(timeout + _FALLBACK, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        guard.kill()  # it may be trying an address that does not answer
        guard.communicate()


def _watch(pid: int, timeout: float, peers: Mapping[str, str]) -> str | None:
    """Why the process ``pid`` has to end; None once it has ended by itself, so that stdin has."""
    began = time.monotonic()
    silent: dict[str, float] = {}
    patience = min(_GONE, timeout / 2)
    while not select.select([0], [], [], _EVERY)[0]:
        for name, address in peers.items():
            if _listens(address):
                silent.pop(name, None)
            else:
                silent.setdefault(name, time.monotonic())
        now = time.monotonic()
        late = now - began >= timeout
        gone = [name for name, since in silent.items() if late or now - since >= patience]
        if gone:
            return (
                f"{' and '.join(f'{name} at {peers[name]}' for name in gone)} went away while "
                f"TensorFlow connected the workers: nobody has listened there for "
                f"{now - max(silent[name] for name in gone):.0f} s. Look at its log for the first "
                f"error; started again, the job goes on from its last checkpoint"
            )
        if late:
            return (
                f"TensorFlow has not connected the workers within {timeout:.0f} s, though all of "
                f"them listen ({', '.join(peers)}). TRAINKIT_TIMEOUT sets the seconds"
            )
    return None


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError:
        return False
    return True


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank decides what becomes of it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    plan = json.loads(sys.argv[1])
    why = _watch(**plan)
    if why is not None:
        os.write(2, f"trainkit: {why}. This process is killed.\n".encode())
        os.kill(plan["pid"], signal.SIGKILL)


if __name__ == "__main__":
    _main()
