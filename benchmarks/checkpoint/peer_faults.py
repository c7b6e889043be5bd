"""The same faults for trainkit and for others, counted.

    pip install -r benchmarks/requirements.txt     # the peers; without them they are left out
    python -m benchmarks.checkpoint.peer_faults    # some minutes; --write brings it into docs/

Every fault is real: bytes are changed on disk, processes are killed, the kernel refuses a write.
Every save and load runs in a process of its own.
"""

import argparse
import collections
import contextlib
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint.peer_libraries import LIBRARIES, Library
from benchmarks.rounds import print_table

DOC = Path(__file__).parents[2] / "docs" / "checkpoint-peers.md"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"

_LARGE, _SMALL, _COUNT = 1 << 20, 1 << 16, 12
"""Elements of one parameter of 4 MiB, and of twelve of 256 KiB."""
_LIMIT = 7 << 19
"""Bytes at which the kernel ends a file: the large parameter does not fit, the others do."""
_PATIENCE = 120.0

OUTCOMES = (
    "no harm",
    "older one restored",
    "error",
    "silent damage",
    "committed one lost",
    "code run",
)


def _model(step: int) -> torch.nn.Module:
    """A module whose numbers all tell the step; 0 for one that is to be loaded into."""
    model = torch.nn.Module()
    for number, elements in enumerate([_LARGE, *[_SMALL] * _COUNT]):
        values = torch.full((elements,), float(step * 100 + number if step else 0))
        model.register_parameter(f"p{number}", torch.nn.Parameter(values))
    return model


def _step_of(model: torch.nn.Module) -> int | None:
    """The step that all numbers tell; None if they are of no step, or of several."""
    step = (int(next(model.parameters())[0].item())) // 100
    whole = all(map(torch.equal, model.parameters(), _model(step).parameters()))
    return step if step and whole else None


def _in_process(action: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """Fork, run ``action``, and yield its pid and then what it tells, one by one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            os.close(reading)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            action(lambda value: os.write(writing, json.dumps(value).encode() + b"\n") and None)
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            yield pid
            while select.select([pipe], [], [], _PATIENCE)[0]:
                line = pipe.readline()
                if not line:
                    break
                yield json.loads(line)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _told(action: Callable[[Callable[[Any], None]], None]) -> list[Any]:
    return [*_in_process(action)][1:]


def _save(library: Library, folder: Path, step: int, *, limited: bool = False) -> bool:
    """Save in a process of its own; whether it returned as if all were well."""

    def run(tell: Callable[[Any], None]) -> None:
        model = _model(step)
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, resource.RLIM_INFINITY))
        library.save(folder, model, step)
        tell(True)

    return bool(_told(run))


def _load(library: Library, folder: Path) -> int | str | None:
    """What a load gives: a step, None for numbers of no step, or the name of an error."""

    def run(tell: Callable[[Any], None]) -> None:
        model = _model(0)
        try:
            library.load(folder, model)
        except BaseException as error:
            tell(type(error).__name__)
        else:
            tell(_step_of(model))

    told = _told(run)
    return told[0] if told else "process died"


class Trial:
    """Faults of one library in a scratch folder."""

    def __init__(self, library: Library, scratch: Path, rounds: int) -> None:
        self._library = library
        self._scratch = scratch
        self._rounds = rounds
        self._random = random.Random(library.name)
        self._marker = scratch / "executed"

    def _pair(self) -> tuple[Path, Path]:
        """A folder with two checkpoints, and the folder to load the newest from."""
        root = self._scratch / "pair"
        if not root.exists():
            for step in (1, 2):
                place = root if self._library.keeps_steps else root / str(step)
                if not _save(self._library, place, step):
                    raise SystemExit(f"{self._library.name}: cannot save at all")
        return root, root if self._library.keeps_steps else root / "2"

    def _damaged(self, damage: Callable[[Path], None], file: Path) -> str:
        """Damage one file of a copy of the pair, and load."""
        root, place = self._pair()
        copy = self._scratch / "copy"
        shutil.copytree(root, copy)
        try:
            damage(copy / file.relative_to(root))
            self._marker.unlink(missing_ok=True)
            found = _load(self._library, copy / place.relative_to(root))
            if self._marker.exists():
                return "code run"
            known = {2: "no harm", 1: "older one restored", None: "silent damage"}
            return known.get(found, "error")  # type: ignore[arg-type]
        finally:
            shutil.rmtree(copy)

    def _files(self) -> list[Path]:
        newest = self._library.newest(self._pair()[1])
        return sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)

    def _some_files(self) -> Iterator[Path]:
        """Every other one by its size, as bytes rot; the others by turns."""
        files = self._files()
        sizes = [file.stat().st_size for file in files]
        for number in range(self._rounds):
            if number % 2:
                yield files[number // 2 % len(files)]
            else:
                yield self._random.choices(files, sizes)[0]

    def flipped_bit(self) -> Iterator[str]:
        """One bit of one file is another."""

        def flip(file: Path) -> None:
            data = bytearray(file.read_bytes())
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            file.write_bytes(data)

        return (self._damaged(flip, file) for file in self._some_files())

    def cut_off(self) -> Iterator[str]:
        """One file ends too early."""

        def cut(file: Path) -> None:
            os.truncate(file, self._random.randrange(file.stat().st_size))

        return (self._damaged(cut, file) for file in self._some_files())

    def missing(self) -> Iterator[str]:
        """One file of the newest is not there."""
        return (self._damaged(Path.unlink, file) for file in self._files())

    def hostile(self) -> Iterator[str]:
        """One file is a pickle that runs code, raw or as torch.save writes it."""

        def replace(file: Path, write: Callable[[Any, Path], None]) -> None:
            write(_Hostile(str(self._marker)), file)
            self._library.forge(file)

        def raw(value: Any, file: Path) -> None:
            file.write_bytes(pickle.dumps(value))

        def zipped(value: Any, file: Path) -> None:
            with file.open("wb") as stream:
                torch.save(value, stream)

        for write in (raw, zipped):
            for file in self._files():
                yield self._damaged(lambda file, write=write: replace(file, write), file)  # type: ignore[misc]

    def killed(self) -> Iterator[str]:
        """kill -9 within a save to where a committed one lies."""
        *_, usual = self._saves_over(self._scratch / "overwritten")
        for number in range(self._rounds):
            # A helper process of the one killed may still write for a moment where it was.
            place = self._scratch / f"overwritten-{number}"
            told = self._saves_over(place, kill_after=self._random.uniform(0, usual))
            found = _load(self._library, place)
            if found == 2 or (found == 1 and len(told) == 1):
                yield "no harm"
            else:
                yield "silent damage" if found is None else "committed one lost"

    def _saves_over(self, place: Path, kill_after: float | None = None) -> list[float]:
        """Save one step over another in one process, and kill it so many seconds into that.

        Returns:
            Seconds that each save took which returned; two unless it was killed in time.
        """

        def run(tell: Callable[[Any], None]) -> None:
            models = {step: _model(step) for step in (1, 2)}
            for step, model in models.items():
                began = time.monotonic()
                self._library.save(place, model, step)
                tell(time.monotonic() - began)

        child = _in_process(run)
        pid = next(child)
        told = [next(child, None)]
        if told[0] is None:
            raise SystemExit(f"{self._library.name}: cannot save at all")
        if kill_after is not None:
            time.sleep(kill_after)
            os.killpg(pid, signal.SIGKILL)
        return [*told, *child]

    def refused_write(self) -> Iterator[str]:
        """The kernel refuses to write one file to its end, in a save to where one lies."""
        place = self._scratch / "refused"
        for _ in range(self._rounds):
            shutil.rmtree(place, ignore_errors=True)
            _save(self._library, place, 1)
            returned = _save(self._library, place, 2, limited=True)
            found = _load(self._library, place)
            if found is None or (returned and found != 2):
                yield "silent damage"
            elif found in (1, 2):
                yield "error" if not returned else "no harm"
            else:
                yield "committed one lost"


class _Hostile:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self._marker, "w"))


FAULTS: dict[str, Callable[[Trial], Iterator[str]]] = {
    "a flipped bit": Trial.flipped_bit,
    "a file cut off": Trial.cut_off,
    "a file missing": Trial.missing,
    "kill -9 in a save over another": Trial.killed,
    "a write refused in a save over another": Trial.refused_write,
    "a file that is a hostile pickle": Trial.hostile,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Try all faults on all libraries, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=24, help="of each fault (%(default)s)")
    parser.add_argument("--only", action="append", help="a library; several times for several")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one")
    parser.add_argument("--write", action="store_true", help="also into docs/checkpoint-peers.md")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    libraries = [lib for lib in LIBRARIES if not args.only or lib.name in args.only]
    missing = [lib.name for lib in libraries if lib.version is None]
    libraries = [lib for lib in libraries if lib.version is not None]
    for library in libraries:
        library.import_modules()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for fault in args.fault or FAULTS:
            for library in libraries:
                folder = Path(scratch) / library.name.replace(" ", "-")
                folder.mkdir(exist_ok=True)
                counts = collections.Counter(FAULTS[fault](Trial(library, folder, args.rounds)))
                print(f"{fault}, {library.name}: {dict(counts)}", file=sys.stderr)
                numbers = [str(counts[outcome] or "") for outcome in OUTCOMES]
                rows.append([fault, library.name, str(counts.total()), *numbers])
    header = ["fault", "library", "faults", *OUTCOMES]
    print_table(header, rows)
    versions = ", ".join(f"{lib.name} {lib.version}" for lib in libraries)
    print(f"\n{versions}; Python {sys.version.split()[0]}")
    for name in missing:
        print(f"{name}: not installed")
    if args.write:
        _write(header, rows, versions)


def _write(header: Sequence[str], rows: Sequence[Sequence[str]], versions: str) -> None:
    text = DOC.read_text()
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOC.write_text(f"{before}{BEGIN}\n{table}\n\n{versions}.\n{END}{after}")


if __name__ == "__main__":
    main()
