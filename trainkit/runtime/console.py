"""What ``ctx.log`` shows: a bar on a terminal, a line per interval in a pod, rank 0 only."""

import sys
import time
from typing import Any, TextIO

__all__ = ["Console"]


class Console:
    """A sink for step metrics that does nothing while nothing is due."""

    def __init__(self, *, enabled: bool, interval: float = 5.0, out: TextIO | None = None) -> None:
        """Write to ``out``.

        Args:
            enabled: False on all ranks but 0.
            interval: seconds between two lines in a pod; a terminal is refreshed more often.
            out: standard output by default.
        """
        self._enabled = enabled
        self._out = sys.stdout if out is None else out
        self._bar: Any = None
        self._task: Any = None
        self._terminal = self._out.isatty()
        self._interval = min(interval, 0.25) if self._terminal else interval
        self._first: tuple[int, float] | None = None
        self._due = 0.0

    def log(self, step: int, steps: int | None, values: dict[str, Any]) -> None:
        """Show ``values`` at ``step`` of ``steps`` if a line is due, or the last step is done."""
        if not self._enabled:
            return
        now = time.monotonic()
        if now < self._due and step != steps:
            return
        self._due = now + self._interval
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
