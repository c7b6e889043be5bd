"""What ``ctx.log`` shows: a bar on a terminal, a line per interval in a pod, rank 0 only."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["Console"]


_MOST_QUIET = 256
"""Steps without a look at the clock, at most: more save nothing that can be measured."""


class Console:
    """A sink for step metrics that does nothing while nothing is due."""

    def __init__(
        self,
        *,
        enabled: bool,
        interval: float = 5.0,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to ``out``.

        Args:
            enabled: False on all ranks but 0.
            interval: seconds between two lines in a pod; a terminal is refreshed more often.
            out: standard output by default.
            clock: seconds.
        """
        self._clock = clock
        self._enabled = enabled
        self._out = sys.stdout if out is None else out
        self._bar: Any = None
        self._task: Any = None
        self._terminal = self._out.isatty()
        self._interval = min(interval, 0.25) if self._terminal else interval
        self._first: tuple[int, float] | None = None
        self._due: float | None = None
        self._looked: tuple[int, float] | None = None

    def log(self, step: int, steps: int | None, values: dict[str, Any]) -> int:
        """Show ``values`` at ``step`` of ``steps`` if a line is due, or the last step is done.

        Returns:
            How many steps it takes until another needs to be told, if steps come at the pace of
            those before: 1 for the next. The last step has to be told in any case.
        """
        if not self._enabled:
            return _MOST_QUIET
        now = self._clock()
        if self._due is None or now >= self._due or step == steps:
            self._due = now + self._interval
            self._show(step, steps, values, now)
        quiet = self._quiet_steps(step, now, self._due)
        self._looked = (step, now)
        return quiet

    def _quiet_steps(self, step: int, now: float, due: float) -> int:
        if self._looked is None or step <= self._looked[0] or now <= self._looked[1]:
            return 1
        known = step - self._looked[0]
        pace = (now - self._looked[1]) / known
        # Half of the way, and at most twice as far as the pace is known for: steps that become
        # slower delay a line by little, and first steps look fast where a device runs behind.
        return max(1, min(_MOST_QUIET, 2 * known, int((due - now) / pace / 2)))

    def _show(self, step: int, steps: int | None, values: dict[str, Any], now: float) -> None:
        if self._first is None:
            self._first = (step, now)
        # Reading a tensor's value waits for its device: only here, when a line is due.
        shown = {name: _number(value) for name, value in values.items()}
        rate = self._rate(step, now)
        if self._terminal:
            self._show_bar(step, steps, shown)
        else:
            self._out.write(_line(step, steps, shown, rate) + "\n")
            self._out.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, step: int, now: float) -> float | None:
        if self._first is None or now <= self._first[1]:
            return None
        return (step - self._first[0]) / (now - self._first[1])

    def _show_bar(self, step: int, steps: int | None, shown: dict[str, str]) -> None:
        if self._bar is None:
            from rich.console import Console as Terminal
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining

            values = TextColumn("{task.fields[text]}")
            columns = (BarColumn(), MofNCompleteColumn(), Remaining(), values)
            self._bar = Progress(*columns, console=Terminal(file=self._out), transient=True)
            self._task = self._bar.add_task("", total=steps, text="")
            self._bar.start()
        text = "  ".join(f"{name} {value}" for name, value in shown.items())
        self._bar.update(self._task, completed=step, total=steps, text=text)


def _line(step: int, steps: int | None, shown: dict[str, str], rate: float | None) -> str:
    parts = [f"step {step}" if steps is None else f"step {step}/{steps}"]
    parts += [f"{name} {value}" for name, value in shown.items()]
    if rate:
        parts.append(f"{rate:.1f} steps/s")
        if steps is not None and steps > step:
            parts.append(f"{(steps - step) / rate:.0f} s left")
    return "  ".join(parts)


def _number(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
