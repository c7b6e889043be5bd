"""How the commit and the look at a root grow: with ranks, and with checkpoints.

    python -m benchmarks.checkpoint.growth         # some minutes: ranks on local disk
    python -m benchmarks.checkpoint.growth --s3    # requests on a real S3 server, too

A few processes write the part manifests of many simulated ranks, each with a tensor file and a JSON
file of a few KB. The coordinator is trainkit's own: what it does between the last part and
the commit is timed, and every operation on the storage is counted. Then a root is filled with a
thousand checkpoints, and `latest_step()`, `all_steps()` and `restore_latest()` are asked for.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.checkpoint.server import s3_url
from benchmarks.rounds import Spread, machine, print_table, warn_if_busy
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder, part_path, rank_state_path
from trainkit.checkpoint.format.manifest import Manifest, Part
from trainkit.checkpoint.save.commit import commit
from trainkit.checkpoint.save.job import Job
from trainkit.storage import Storage, open_storage
from trainkit.waiting import Deadline

DOC = Path(__file__).parents[2] / "docs" / "checkpoint-growth.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

RANKS = (8, 64, 512, 4096)
S3_RANKS = (8, 64)
CHECKPOINTS = 1000
MOST_SECONDS, MOST_A_RANK = 2.0, 3.0

_OPERATIONS = [
    "create",
    "write",
    "write_all",
    "read",
    "read_into",
    "names",
    "tree",
    "size",
    "delete",
]
# Clients of object stores do not survive a fork.
_SPAWN = multiprocessing.get_context("spawn")
_DIVISION = "division"
_TENSORS, _VALUES = b"t" * 4096, b"{}\n"


class CountingStorage:
    """A storage that counts what is asked of it."""

    def __init__(self, storage: Storage) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in _OPERATIONS:
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.asked[name] += 1
            return found(*args, **kwargs)

        return counted

    def shown(self) -> str:
        """Which operations, and how often."""
        return ", ".join(f"{name} {count}" for name, count in sorted(self.asked.items()))


def _record(data: bytes) -> FileRecord:
    return FileRecord(len(data), (digest(data),))


def _write_parts(url: str, folder: StepFolder, ranks: range) -> None:
    """What ranks leave behind when they are done."""
    storage = open_storage(url)
    for rank in ranks:
        path = rank_state_path(rank)
        contents = {f"{path}.safetensors": _TENSORS, f"{path}.json": _VALUES}
        storage.write_all({f"{folder.name}/{name}": data for name, data in contents.items()})
        files = {name: _record(data) for name, data in contents.items()}
        part = Part(rank, files, division=_DIVISION)
        storage.create(f"{folder.name}/{part_path(rank)}", part.to_bytes())


def _commit(storage: Storage, folder: StepFolder, world_size: int) -> None:
    """The coordinator's work, as the process of rank 0 that writes does it."""
    job = Job(
        folder=folder,
        rank=0,
        world_size=world_size,
        division=_DIVISION,
        entries={},
        metrics={},
        written_by="benchmark",
        timeout=60.0,
        attempts=1,
        pause=0.0,
    )
    commit(storage, job, Deadline(job.timeout), lambda: None)


def _ranks(url: str, counts: Sequence[int], rounds: int, processes: int) -> Iterator[list[str]]:
    for world_size in counts:
        seconds, asked = [], collections.Counter[str]()
        for number in range(rounds):
            root = f"{url}/{world_size}-{number}"
            open_storage(root).make_folder()
            folder = StepFolder(number, 1, number)
            share = -(-world_size // processes)
            shares = [
                range(begin, min(begin + share, world_size))
                for begin in range(0, world_size, share)
            ]
            with concurrent.futures.ProcessPoolExecutor(processes, mp_context=_SPAWN) as pool:
                list(pool.map(_write_parts, [root] * len(shares), [folder] * len(shares), shares))
            storage = CountingStorage(open_storage(root))
            began = time.perf_counter()
            _commit(storage, folder, world_size)  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - began)
            asked, shown = storage.asked, storage.shown()
            if open_storage(root).size(f"{folder.name}/{MANIFEST}") is None:
                raise SystemExit("the commit left no manifest")
        total = asked.total()
        print(f"{world_size} ranks done", file=sys.stderr)
        yield [
            str(world_size),
            Spread.of(seconds).show(".3f"),
            str(total),
            f"{total / world_size:.2f}",
            shown,
        ]


def _fill(storage: Storage, count: int) -> None:
    """A root of ``count`` checkpoints of one small dictionary: one is saved, the others copied."""
    manager = CheckpointManager(storage.url, {"values": {"step": 0}})
    manager.save(0)
    manager.wait()
    manager.close()
    (name,) = (name for name in storage.names() if name.startswith("step-"))
    first = StepFolder.parse(name)
    assert first is not None
    saved = Manifest.from_bytes(storage.read(f"{name}/{MANIFEST}"))
    contents = {path: storage.read(f"{name}/{path}") for path in saved.files}
    fields = {field: getattr(saved, field) for field in saved.__dataclass_fields__}

    def copy(step: int) -> None:
        folder = StepFolder(step, first.generation, first.attempt + step)
        for path, data in contents.items():
            storage.write(f"{folder.name}/{path}", [data])
        manifest = Manifest(**{**fields, "step": step, "attempt": folder.attempt})
        storage.create(f"{folder.name}/{MANIFEST}", manifest.to_bytes())

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in pool.map(copy, range(1, count)):
            pass


def _looks(url: str, count: int, rounds: int) -> Iterator[list[str]]:
    _fill(open_storage(url), count)
    print(f"{count} checkpoints made", file=sys.stderr)
    options = CheckpointOptions(read_only=True)
    manager = CheckpointManager(url, {"values": {"step": 0}}, options=options)
    storage = CountingStorage(open_storage(url))
    manager._root.storage = storage  # type: ignore[assignment]
    actions: dict[str, Callable[[], Any]] = {
        "latest_step()": manager.latest_step,
        "all_steps()": lambda: len(manager.all_steps()),
        "restore_latest()": manager.restore_latest,
    }
    for name, action in actions.items():
        seconds = []
        for _ in range(rounds):
            storage.asked.clear()
            began = time.perf_counter()
            found = action()
            seconds.append(time.perf_counter() - began)
            if found != (count if name.startswith("all") else count - 1):
                raise SystemExit(f"{name} of {count} checkpoints is {found}")
        shown = Spread.of(seconds).show(".3f")
        yield [name, str(count), shown, str(storage.asked.total()), storage.shown()]
    manager.close()


def _report(url: str, args: argparse.Namespace, ranks: Sequence[int], checkpoints: int) -> Any:
    place = "S3" if "://" in url else "local disk"
    rows = list(_ranks(f"{url}/ranks", ranks, args.rounds, args.processes))
    looks = list(_looks(f"{url}/many", checkpoints, args.rounds))
    print(f"\n### Ranks, on {place}\n")
    print_table(["ranks", "coordinator, s", "operations", "a rank", "of them"], rows)
    print(f"\n### Checkpoints, on {place}\n")
    print_table(["what", "checkpoints", "s", "operations", "of them"], looks)
    return {"ranks": rows, "checkpoints": looks}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both, and print the tables of docs/checkpoint-growth.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="writers (default: %(default)s)")
    parser.add_argument("--most-ranks", type=int, default=RANKS[-1], help="(default: %(default)s)")
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS, help="(%(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; TMPDIR's by default")
    parser.add_argument("--s3", action="store_true", help="also on SeaweedFS, with fewer ranks")
    parser.add_argument("--write", action="store_true", help="also into docs/checkpoint-growth.md")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    args = parser.parse_args(argv)
    warn_if_busy()
    if not args.write:
        _run(args)
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        _run(args)
    print(printed.getvalue())
    before, _, rest = DOC.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOC.write_text(f"{before}{BEGIN}\n{printed.getvalue().strip()}\n{END}{after}")


def _run(args: argparse.Namespace) -> None:
    print(machine())
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=args.folder))
    try:
        ranks = [count for count in RANKS if count <= args.most_ranks]
        found = {"local": _report(str(folder), args, ranks, args.checkpoints)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.s3:
        with s3_url() as url:
            found["s3"] = _report(url, args, S3_RANKS, min(args.checkpoints, 200))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    _print_verdict(found["local"]["ranks"])


def _print_verdict(rows: Sequence[Sequence[str]]) -> None:
    ranks, seconds, _, a_rank, _ = rows[-1]
    median = float(seconds.split()[0])
    for what, value, most in (
        ("seconds of the coordinator", median, MOST_SECONDS),
        ("operations a rank", float(a_rank), MOST_A_RANK),
    ):
        verdict = "met" if value <= most else "missed"
        print(f"\n{ranks} ranks: {value:.2f} {what}; target ≤ {most:.0f}: {verdict}")


if __name__ == "__main__":
    main()
