"""One JSON line a step and rank: which samples, which loss. For checking, not for speed."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

__all__ = ["StepTrace"]


class StepTrace:
    """Appends to ``<folder>/rank-<rank>.jsonl``; does nothing without a folder.

    A line is one ``write``, so a kill leaves at most one cut line, the last; a restarted rank
    goes on in a line of its own, and a step that it repeats is a later line.
    """

    def __init__(self, folder: str | None, rank: int) -> None:
        """Open the file of ``rank``, making the folder where needed."""
        self._file: int | None = None
        if folder is None:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / f"rank-{rank}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    @property
    def enabled(self) -> bool:
        """Whether steps are written at all."""
        return self._file is not None

    def step(self, step: int, epoch: int, samples: Sequence[int], loss: float) -> None:
        """Write one step.

        Args:
            step: counts from 1.
            epoch: counts from 0.
            samples: ids of this rank's samples, in the batch's order.
            loss: this rank's mean before the update.
        """
        if self._file is None:
            return
        line = {"step": step, "epoch": epoch, "samples": list(samples), "loss": loss}
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
