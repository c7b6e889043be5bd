"""Threads beside the one that is connected: XGBoost would train alone there, and say nothing.

Its communicator is thread-local: in another thread ``xgboost.train`` sees a world of one. It
trains on this rank's part of the data and returns a model that looks like any other. XGBoost
has no hook where that could be noticed, so while a job of several ranks is connected, the
methods below ask where they are before they begin: a microsecond a round.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import xgboost
from xgboost import collective

from trainkit.errors import StrategyError
from trainkit.strategies.xgboost.stuck import StuckWatch

__all__ = ["ThreadGuard", "require_connected"]

_GUARDED: tuple[tuple[Any, str], ...] = (
    (xgboost.Booster, "update"),
    (xgboost.Booster, "boost"),
    # They find the cuts of the histograms together with the other ranks.
    (xgboost.QuantileDMatrix, "__init__"),
    (xgboost.ExtMemQuantileDMatrix, "__init__"),
)
_WATCHED: tuple[tuple[Any, str], ...] = (
    *_GUARDED,
    # They wait for the other ranks in a thread that is connected, and for nobody in others.
    (xgboost.Booster, "eval_set"),
    (collective, "allreduce"),
    (collective, "broadcast"),
)


def require_connected(what: str) -> None:
    """Refuse to do ``what`` in a thread that has no connection to the other ranks.

    Raises:
        StrategyError: this is such a thread.
    """
    if collective.is_distributed():
        return
    raise StrategyError(
        f"{what} in thread {threading.current_thread().name!r}: XGBoost's communicator belongs to "
        f"the thread that opened it, so this one would work alone, on this rank's part of the "
        f"data. Call it in the thread that runs main; or, on every rank, inside `with "
        f"ctx.native.communicator(name):` in the thread; or, if it is meant to be alone, inside "
        f"`with ctx.native.alone():`."
    )


class ThreadGuard:
    """Has training in a thread without a connection raise, between ``install`` and ``remove``."""

    def __init__(self, watch: StuckWatch) -> None:
        """Prepare.

        Args:
            watch: is told of each call.
        """
        self._watch = watch
        self._allowed = threading.local()
        self._before: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        """Begin to watch."""
        for owner, name in _WATCHED:
            original = owner.__dict__[name]
            self._before.append((owner, name, original))
            guarded = f"{owner.__name__}.{name}" if (owner, name) in _GUARDED else None
            setattr(owner, name, self._watched(original, guarded))

    def remove(self) -> None:
        """Leave XGBoost as it was."""
        while self._before:
            setattr(*self._before.pop())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let the calling thread train by itself while this is open.

        Raises:
            StrategyError: this thread is connected, so all ranks would have to take part.
        """
        if collective.is_distributed():
            raise StrategyError(
                "ctx.native.alone() in a thread that is connected with the other ranks: XGBoost "
                "would wait for them all the same. Open it in a thread of its own."
            )
        self._allowed.alone = True
        try:
            yield
        finally:
            self._allowed.alone = False

    def _watched(self, original: Callable[..., Any], guarded: str | None) -> Callable[..., Any]:
        what, watch = guarded and guarded.replace(".__init__", "()"), self._watch

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if what and not getattr(self._allowed, "alone", False):
                require_connected(what)
            entered = watch.enter()
            try:
                return original(*args, **kwargs)
            finally:
                watch.leave(entered)

        return watched
