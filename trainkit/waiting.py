"""Waits that say what and whom they await, and for how long at most."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from trainkit.errors import DeadlineError

__all__ = ["Deadline", "backoff", "wait_until"]

T = TypeVar("T")
log = logging.getLogger(__name__)

_FIRST_NOTICE = 5.0
"""Seconds of silence before a wait says what it is waiting for; then at doubling distances."""


class Deadline:
    """A moment on the monotonic clock by which something must have happened."""

    __slots__ = ("_start", "seconds")

    def __init__(self, seconds: float) -> None:
        """Begin a deadline that passes ``seconds`` from now."""
        self.seconds = seconds
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline began."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def passed(self) -> bool:
        """Whether the moment is over."""
        return self.elapsed >= self.seconds


def backoff(first: float = 0.001, last: float = 0.5, factor: float = 1.6) -> Iterator[float]:
    """Pauses in seconds, growing from ``first`` to ``last`` and staying there."""
    pause = first
    while True:
        yield pause
        pause = min(last, pause * factor)


def wait_until(
    condition: Callable[[], T | None],
    *,
    what: str,
    deadline: Deadline,
    whom: Callable[[], str] | None = None,
    hint: str = "",
    pauses: Iterator[float] | None = None,
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    Args:
        condition: asked again after each pause.
        what: the thing awaited, as it completes the sentence "waiting for …".
        deadline: when to give up.
        whom: names those who are still missing; asked only for messages.
        hint: what the reader can do, appended to the error.
        pauses: seconds between two questions; ``backoff()`` by default.

    Raises:
        DeadlineError: the deadline passed; the message names ``what`` and ``whom``.
    """
    notice = _FIRST_NOTICE
    for pause in pauses or backoff():
        result = condition()
        if result:
            return result
        if deadline.passed:
            raise DeadlineError(_sentence("gave up waiting for", what, whom, deadline, hint))
        if deadline.elapsed >= notice:
            notice *= 2
            log.warning("%s", _sentence("waiting for", what, whom, deadline, ""))
        time.sleep(min(pause, deadline.left + 0.001))
    raise AssertionError("pauses ended")  # pragma: no cover - backoff() never ends


def _sentence(
    verb: str, what: str, whom: Callable[[], str] | None, deadline: Deadline, hint: str
) -> str:
    missing = f" ({whom()})" if whom is not None else ""
    clock = f"{deadline.elapsed:.0f} s of {deadline.seconds:.0f} s"
    return f"{verb} {what}{missing}: {clock}" + (f". {hint}" if hint else "")
