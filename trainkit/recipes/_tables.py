"""Tables for the tabular recipe: sets that scikit-learn ships, or a folder of CSV files.

A part (train, validation or test) has the same rows on any number of ranks; each row of it is
one rank's.
"""

import csv
import gzip
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import trainkit
from trainkit.errors import DataError, DependencyError, InputMissingError

__all__ = ["Part", "Table", "load_bundled", "load_folder"]

Part = Literal["train", "validation", "test"]
Rows = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Features [rows, columns] and labels [rows], float32."""

_TENTHS: dict[str, tuple[int, ...]] = {"validation": (8,), "test": (9,)}
"""A row's place, modulo 10, says which part it is in; the others are for training."""


@dataclass(frozen=True)
class Table:
    """This rank's rows, in batches that are read when they are asked for."""

    source: str
    num_columns: int
    num_classes: int
    num_rows: Mapping[str, int]
    """Of all ranks, by part."""
    readers: Mapping[str, Sequence[Callable[[], Rows]]]
    """Of this rank, by part; each reads one batch."""

    def batches(self, part: Part) -> Iterator[Rows]:
        """The batches of this rank, and an empty one where it has none."""
        for read in self.readers[part]:
            yield read()
        if not self.readers[part]:
            yield self._nothing()

    def rows(self, part: Part) -> Rows:
        """All rows of this rank at once."""
        features, labels = zip(*self.batches(part), strict=True)
        return np.concatenate(features), np.concatenate(labels)

    def _nothing(self) -> Rows:
        return np.empty((0, self.num_columns), np.float32), np.empty(0, np.float32)


def load_bundled(ctx: trainkit.Context, name: str, *, batch_rows: int) -> Table:
    """One of the sets that come with scikit-learn: nothing is downloaded.

    Args:
        ctx: whose rank's rows to take.
        name: ``digits`` (1,797 rows of 64 counts of dark pixels, 10 classes) or
            ``breast_cancer`` (569 rows of 30 measurements, 2 classes).
        batch_rows: rows a batch.

    Raises:
        DependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise DependencyError(
            f"the data set {name!r} comes with scikit-learn, which is not installed: install "
            f'"trainkit[tabular]", or name a folder of CSV files with --data-dir'
        ) from None
    found = getattr(datasets, f"load_{name}")()
    features, labels = found.data.astype(np.float32), found.target.astype(np.float32)
    order = np.random.default_rng(0).permutation(len(labels))  # always this one: parts are fixed

    def reader(chosen: np.ndarray[Any, Any]) -> Callable[[], Rows]:
        return lambda: (features[chosen], labels[chosen])

    readers, num_rows = {}, {}
    for part in ("train", "validation", "test"):
        rows = order[_in_part(part, len(order))]
        own = np.asarray(ctx.shard(rows), dtype=np.int64)
        cuts = range(0, len(own), batch_rows)
        readers[part] = [reader(own[start : start + batch_rows]) for start in cuts]
        num_rows[part] = len(rows)
    return Table(
        f"scikit-learn's {name}", features.shape[1], int(labels.max()) + 1, num_rows, readers
    )


def load_folder(ctx: trainkit.Context, folder: str, label: str | None) -> Table:
    """CSV files with a header line, ``*.csv`` or ``*.csv.gz``; each is one rank's, and a batch.

    Every column is a number; an empty field is a missing value.

    Args:
        ctx: whose rank's files to take.
        folder: where they are, the same on all ranks.
        label: the label's column, the last by default; its values are 0, 1, 2 …

    Raises:
        InputMissingError: there is no such file.
        DataError: a file has other columns, or a value that is no number; or no file has rows
            enough for all parts.
    """
    files = sorted(path for path in Path(folder).glob("*") if path.name.endswith(_ENDINGS))
    if not files:
        raise InputMissingError(f"--data-dir {folder}: there is no *.csv and no *.csv.gz in it")
    header = _header(files[0])
    if label is not None and label not in header:
        raise DataError(f"--label {label}: {files[0]} has the columns {', '.join(header)}")
    place = header.index(label) if label is not None else len(header) - 1
    own = ctx.shard(files)
    # One pass over this rank's files: which labels there are, and how many rows a part has.
    highest, counts = 0, dict.fromkeys(("train", "validation", "test"), 0)
    for path in own:
        labels = _read(path, header, place)[1]
        wrong = labels[~(np.isfinite(labels) & (labels >= 0) & (labels == np.floor(labels)))]
        if len(wrong):
            raise DataError(
                f"{path}: label {wrong[0]:g} in column {header[place]}: expected 0, 1, 2…"
            )
        highest = max(highest, int(labels.max(initial=0)))
        for part in counts:
            counts[part] += int(_in_part(part, len(labels)).sum())

    def reader(path: Path, part: str) -> Callable[[], Rows]:
        def read() -> Rows:
            features, labels = _read(path, header, place)
            chosen = _in_part(part, len(labels))
            return features[chosen], labels[chosen]

        return read

    num_rows = {part: int(ctx.all_reduce(count, "sum")) for part, count in counts.items()}
    empty = [part for part, count in num_rows.items() if not count]
    if empty:
        raise DataError(
            f"--data-dir {folder}: {len(files)} file(s) have no rows for {' and '.join(empty)}, "
            f"and {num_rows['train']} to train on. Of each ten rows of a file the ninth is for "
            f"validation and the tenth for the test: expected are files of ten rows or more."
        )
    return Table(
        f"{len(files)} files of {folder}",
        len(header) - 1,
        int(ctx.all_reduce(highest, "max")) + 1,
        num_rows,
        {part: [reader(path, part) for path in own] for part in counts},
    )


_ENDINGS = (".csv", ".csv.gz")


def _in_part(part: str, rows: int) -> np.ndarray[Any, Any]:
    """Which of ``rows`` rows are in ``part``, as a mask."""
    place = np.arange(rows) % 10
    held_out = [tenth for tenths in _TENTHS.values() for tenth in tenths]
    return np.isin(place, _TENTHS[part]) if part in _TENTHS else ~np.isin(place, held_out)


def _open(path: Path) -> Any:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _header(path: Path) -> list[str]:
    with _open(path) as file:
        header = next(csv.reader(file), [])
    if not header:
        raise DataError(f"{path}: expected a line with the columns' names, and there is none")
    return header


def _read(path: Path, header: list[str], place: int) -> Rows:
    found = _header(path)
    if found != header:
        raise DataError(f"{path} has the columns {', '.join(found)}, and others have {header}")
    with _open(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data")
        try:
            table = np.loadtxt(
                file,
                delimiter=",",
                skiprows=1,
                dtype=np.float32,
                ndmin=2,
                converters=lambda text: float(text or "nan"),
            )
        except ValueError as reason:
            raise DataError(f"{path}: {reason}") from None
    if not table.size:
        table = table.reshape(0, len(header))
    if table.shape[1] != len(header):
        raise DataError(f"{path}: rows of {table.shape[1]} values under {len(header)} columns")
    return np.delete(table, place, axis=1), table[:, place]
