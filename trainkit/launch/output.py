"""Where the output of each rank goes: to this process's, to files, or to both."""

import os
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainkit.errors import UsageError
from trainkit.processes.output import OutputPump

__all__ = ["OutputOptions", "RankOutput", "Streams"]

_STREAMS: tuple[tuple[Literal["stdout", "stderr"], int], ...] = (("stdout", 1), ("stderr", 2))


@dataclass(frozen=True, slots=True)
class Streams:
    """For each local rank, streams as torchrun numbers them: 0 none, 1 out, 2 err, 3 both."""

    default: int = 0
    by_rank: dict[int, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, flag: str) -> "Streams":
        """Read ``3``, or ``0:1,1:2``.

        Raises:
            UsageError: it is neither; the message names ``flag``.
        """
        try:
            if ":" not in text:
                return cls(cls._number(text))
            pairs = (pair.split(":") for pair in text.split(","))
            return cls(0, {int(rank): cls._number(number) for rank, number in pairs})
        except ValueError:
            raise UsageError(
                f"{flag}={text!r}: expected 0 (none), 1 (stdout), 2 (stderr) or 3 (both), or pairs "
                f"of local rank and number such as 0:3,1:2"
            ) from None

    @staticmethod
    def _number(text: str) -> int:
        value = int(text)
        if not 0 <= value <= 3:
            raise ValueError(text)
        return value

    def has(self, local_rank: int, stream: int) -> bool:
        """Whether ``stream`` (1 or 2) of ``local_rank`` is among them."""
        return bool(self.by_rank.get(local_rank, self.default) & stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What the user asked for."""

    captured: bool = True
    """Whether output is copied at all; else ranks write where this process does."""
    prefix: bool = False
    """Whether lines begin with the rank they are from."""
    json: bool = False
    """One JSON object a line."""
    log_dir: str | None = None
    """Folder for one file a rank and stream."""
    redirects: Streams = Streams()
    """Streams that go to files alone."""
    tee: Streams = Streams()
    """Streams that go to files as well."""
    shown: frozenset[int] | None = None
    """Local ranks whose output is shown; None is all."""


class RankOutput:
    """Gives each rank the files it writes to, and copies what comes out of them."""

    def __init__(self, options: OutputOptions, run_id: str, fallback: Path) -> None:
        """Prepare.

        Args:
            options: what the user asked for.
            run_id: begins the name of this run's folder below ``log_dir``.
            fallback: folder for files that were asked for without a ``log_dir``.
        """
        self._options = options
        self._pump: OutputPump | None = None
        self.folder = fallback
        if options.log_dir is not None:
            # As torchrun: the same folder serves many runs, each in a folder of its own.
            name = f"{run_id}_{uuid.uuid4().hex[:8]}"
            self.folder = Path(options.log_dir).absolute() / name

    def open(self, label: str, rank: int | None, local_rank: int, attempt: int) -> dict[str, int]:
        """Open what a rank is to have as stdout and stderr; the caller closes it again."""
        found: dict[str, int] = {}
        if not self._options.captured:
            return found
        for stream, bit in _STREAMS:
            read, write = os.pipe2(os.O_CLOEXEC)
            self._copies().add(
                read,
                stream=stream,
                label=label if self._options.prefix or self._options.json else "",
                rank=rank,
                log=self._log(stream, bit, local_rank, attempt),
                shown=self._shown(bit, local_rank),
            )
            found[stream] = write
        return found

    def tail(self, rank: int | None, lines: int = 20) -> list[str]:
        """The last lines that a rank, or the one process without a rank, wrote to stderr."""
        return [] if self._pump is None else self._pump.tail(rank, lines)

    def drain(self, timeout: float) -> None:
        """Copy what ranks that have ended wrote, for at most ``timeout`` seconds."""
        if self._pump is not None:
            self._pump.drain(timeout)

    def close(self, timeout: float) -> None:
        """Copy what is left, for at most ``timeout`` seconds."""
        self.drain(timeout)
        if self._pump is not None:
            self._pump.close()

    def _copies(self) -> OutputPump:
        if self._pump is None:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            self._pump = OutputPump(json=self._options.json)
        return self._pump

    def _log(self, stream: str, bit: int, local_rank: int, attempt: int) -> Path | None:
        options = self._options
        to_file = options.redirects.has(local_rank, bit) or options.tee.has(local_rank, bit)
        if not to_file and options.log_dir is None:
            return None
        folder = self.folder / f"attempt_{attempt}" / str(local_rank)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{stream}.log"

    def _shown(self, bit: int, local_rank: int) -> bool:
        options = self._options
        if options.shown is not None and local_rank not in options.shown:
            return False
        return options.tee.has(local_rank, bit) or not options.redirects.has(local_rank, bit)
