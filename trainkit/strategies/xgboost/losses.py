"""What a broken collective of XGBoost means: who is gone, told by who still answers.

XGBoost's neighbours in a ring notice a dead rank within milliseconds, and say "Poll error
condition". So the ranks that live call the roll in the store: each says that it is there, and
closes its connections, by which those that waited for it hear of it too.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from trainkit import config
from trainkit.coordination import Communicator, Store
from trainkit.errors import DeadlineError, PeerLostError, RetryableError, TrainkitError
from trainkit.lifecycle.causes import is_collective_error
from trainkit.lifecycle.failure import report
from trainkit.waiting import Deadline, wait_until

__all__ = [
    "end_at_once",
    "explain",
    "is_loss",
    "missing_ranks",
    "store_answers",
]

_ANSWER = 3.0
"""Seconds for one answer of the store before its host counts as gone."""
_ROLL_CALL = 5.0
"""Seconds for ranks to say that they live, at most …"""
_SILENCE = 1.5
"""… or so many seconds without another one that does: XGBoost tells all within milliseconds, and
where it does not, ``stuck`` finds that within fractions of a second, on cores that are free."""


def is_loss(error: BaseException) -> bool:
    """Whether ``error`` is XGBoost's, of a collective that did not come to its end."""
    return is_collective_error(type(error).__name__, str(error))


def store_answers(store: Store) -> bool:
    """Whether the store's host, which is rank 0's, is alive; asked in a thread that may hang."""
    answered = threading.Event()

    def ask() -> None:
        try:
            store.add("lost/asked", 0)
        except (TrainkitError, Exception):  # whatever it is, this was no answer
            return
        answered.set()

    asking = threading.Thread(target=ask, name="trainkit-roll-call", daemon=True)
    asking.start()
    asking.join(_ANSWER)
    return answered.is_set()


def end_at_once(error: RetryableError, rank: int) -> NoReturn:
    """Report ``error`` and end the process, whatever its other threads are in."""
    code = report(error, rank=rank, error_file=config.environ().get("TORCHELASTIC_ERROR_FILE"))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def missing_ranks(communicator: Communicator, leave: Callable[[bool], Any]) -> list[int]:
    """Ranks that do not answer any more; empty if all do.

    Args:
        communicator: of this rank.
        leave: called once this rank has answered, with whether rank 0 lives: closes its
            connections to the others.
    """
    store = communicator.store
    if communicator.rank != 0 and not store_answers(store):
        leave(False)
        return [0]
    absent = set(range(communicator.world_size))
    # Rank 0 takes the store with it when it ends, so it waits for longer than the others.
    pause = _SILENCE if communicator.rank else 2 * _SILENCE
    silence = Deadline(pause)

    def all_told() -> bool:
        nonlocal absent, silence
        still = {rank for rank in absent if store.get(f"lost/{rank}") is None}
        if still != absent:
            absent, silence = still, Deadline(pause)
        return not absent or silence.passed

    try:
        store.set(f"lost/{communicator.rank}", b"1")
        leave(True)
        wait_until(all_told, what="the other ranks to answer", deadline=Deadline(_ROLL_CALL))
    except DeadlineError:
        pass
    except RetryableError:  # the store ended meanwhile
        return [0] if 0 in absent else sorted(absent)
    return sorted(absent)


def explain(
    error: BaseException, missing: list[int], communicator: Communicator, timeout: float
) -> RetryableError:
    """The error to raise in place of XGBoost's, by name of who is missing.

    Args:
        error: XGBoost's.
        missing: as ``missing_ranks`` found them.
        communicator: of this rank.
        timeout: seconds that a collective may take.
    """
    late = "timeout" in str(error).lower() or "timed out" in str(error).lower()
    size = communicator.world_size
    names = ", ".join(map(str, missing))
    if late and missing:
        return DeadlineError(
            f"rank {communicator.rank} waited {timeout:.0f} s in a collective of XGBoost for "
            f"rank(s) {names} of {size}, and they did not come. Look at their log: a slow load of "
            f"data, or an error. TRAINKIT_TIMEOUT sets the seconds to wait."
        )
    if missing:
        return PeerLostError(
            f"rank {communicator.rank} lost rank(s) {names} of {size} in a collective of XGBoost: "
            f"ended, or out of reach. Look at their log for the first error. All ranks have to "
            f"start again, and go on from the last checkpoint."
        )
    return PeerLostError(
        f"a connection of XGBoost between the {size} ranks broke, though all of them live: "
        f"{str(error).strip().splitlines()[-1][:200]}. All ranks have to start again, and go on "
        f"from the last checkpoint."
    )
