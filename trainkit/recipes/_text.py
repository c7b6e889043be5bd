"""Text as bytes, a part of its files held out, and what counting alone would make of it."""

import hashlib
import math
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from trainkit.errors import DataError, InputMissingError

__all__ = ["Text", "Windows", "load_text", "ngram_bits"]

_SUFFIXES = {".md", ".py", ".rst", ".txt"}
_LEFT_OUT = {"__pycache__", "dist-packages", "encodings", "site-packages", "test", "tests"}
"""Of Python's library: what others installed, tests, and tables of characters."""
_ONE_OF = 10
"""One file of so many is held out."""


@dataclass(frozen=True, slots=True)
class Text:
    """All files after each other, each followed by a 0."""

    train: torch.Tensor
    """Bytes to train on, uint8 [N]."""
    held_out: torch.Tensor
    """Bytes of other files, uint8 [M]."""
    num_files: int
    source: str
    """For the log."""


def load_text(folder: str | None) -> Text:
    """Read the text files below ``folder``, or the sources of Python's own library.

    Which files are held out depends on their names alone, so that it is the same on all ranks
    and in every attempt.

    Raises:
        InputMissingError: there is no such folder.
        DataError: fewer than two files.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise InputMissingError(
            f"--data-dir {root}: there is no such folder; is the volume mounted? Without "
            f"--data-dir the text is Python's own library."
        )
    files = sorted(_files(root, own_library=folder is None), key=lambda file: _place(root, file))
    if len(files) < 2:
        raise DataError(
            f"expected two text files or more ({', '.join(sorted(_SUFFIXES))}) in {root}, one to "
            f"train on and one to hold out; found {len(files)}"
        )
    num_held_out = max(1, len(files) // _ONE_OF)
    held_out, train = files[:num_held_out], files[num_held_out:]
    source = "Python's own library" if folder is None else str(root)
    return Text(_joined(train), _joined(held_out), len(files), source)


def _files(root: Path, *, own_library: bool) -> Iterator[Path]:
    for file in root.rglob("*"):
        parts = file.relative_to(root).parts
        wanted = file.suffix == ".py" if own_library else file.suffix in _SUFFIXES
        if wanted and file.is_file() and not (own_library and _LEFT_OUT.intersection(parts)):
            yield file


def _place(root: Path, file: Path) -> str:
    return hashlib.sha256(file.relative_to(root).as_posix().encode()).hexdigest()


def _joined(files: list[Path]) -> torch.Tensor:
    data = bytearray(b"\0".join(file.read_bytes() for file in files) + b"\0")
    return torch.frombuffer(data, dtype=torch.uint8)


class Windows(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """A text in pieces of one length: L bytes, the L bytes that follow each, and an id."""

    def __init__(self, text: torch.Tensor, length: int, *, at_most: int | None = None) -> None:
        """Cut ``text``.

        Args:
            text: uint8 [N].
            length: bytes of a window.
            at_most: so many windows, spread evenly over the text; all by default.

        Raises:
            DataError: the text is shorter than a window.
        """
        self.text = text
        self.length = length
        whole = (len(text) - 1) // length
        if whole < 1:
            raise DataError(
                f"expected {length + 1} bytes of text or more, for one window of --context "
                f"{length}; found {len(text)}"
            )
        self._count = whole if at_most is None else min(whole, at_most)
        self._stride = whole // self._count * length

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        first = index * self._stride
        window = self.text[first : first + self.length + 1].long()
        return window[:-1], window[1:], index


def ngram_bits(train: torch.Tensor, windows: Windows, order: int) -> float:
    """Bits a byte that an n-gram model of ``train`` needs for the bytes that ``windows`` asks for.

    Counts with Witten-Bell smoothing: a context that was seen C times, with T different
    successors, gives the shorter context a weight of T / (C + T). (Witten and Bell, 1991.) It
    knows the bytes before a window too, which a network does not.

    Args:
        train: uint8 [N].
        windows: of the held-out text.
        order: bytes that it looks at, with the one that it tells: 2 is a bigram, 3 at most.
    """
    starts = torch.arange(len(windows)) * windows._stride
    places = (starts[:, None] + torch.arange(1, windows.length + 1)).flatten()
    places = places[places >= order - 1]
    probability = torch.full((len(places),), 1 / 256, dtype=torch.float64)
    for length in range(1, order + 1):
        # The bytes of a context and the next one, as digits of one number.
        seen, asked = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        for back in range(length - 1, -1, -1):
            seen = seen * 256 + train[length - 1 - back : len(train) - back].long()
            asked = asked * 256 + windows.text[places - back].long()
        counts = torch.bincount(seen, minlength=256**length)
        context = asked // 256
        successors = (counts.view(-1, 256) > 0).sum(1)[context]
        times = counts.view(-1, 256).sum(1)[context]
        told = (counts[asked] + successors * probability) / (times + successors).clamp(min=1)
        probability = torch.where(times > 0, told, probability)
    return float(-probability.log2().mean()) if len(places) else math.nan
