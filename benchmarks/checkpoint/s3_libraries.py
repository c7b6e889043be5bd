"""Objects to and from S3 by s3fs and by obstore: seconds, and seconds of this process's cores.

    pip install "trainkit[test]"                   # SeaweedFS, a real server, s3fs and obstore
    python -m benchmarks.checkpoint.s3_libraries

The server is on the same cores, so what counts is the ratio. The two take turns in one process; a
round writes new objects with ``write_all`` and reads each.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

from benchmarks.checkpoint.server import s3_url
from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy
from trainkit.storage import ObjectStorage, Storage
from trainkit.storage.obstore import ObstoreStorage

OBJECTS = {
    "1000 × 4 KiB": (1000, 4 << 10),
    "200 × 256 KiB": (200, 256 << 10),
    "32 × 4 MiB": (32, 4 << 20),
}
LIBRARIES = ("s3fs", "obstore")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both on all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    rows = []
    with s3_url() as url:
        stores: dict[str, Storage] = {
            "s3fs": ObjectStorage(url),
            "obstore": ObstoreStorage(url, os.environ),
        }
        for name, (count, size) in OBJECTS.items():
            rows += _compared(name, stores, count, size, args.rounds)
    print(machine(), end="\n\n")
    print_table(["objects", "library", "write, s", "its CPU, s", "read, s", "its CPU, s"], rows)


def _compared(
    name: str, stores: dict[str, Storage], count: int, size: int, rounds: int
) -> list[list[str]]:
    found: dict[str, list[list[float]]] = {library: [] for library in LIBRARIES}
    turns = iter(range(1_000_000))

    def measure(library: str) -> float:
        store, folder = stores[library], f"{library}-{next(turns)}"
        files = {f"{folder}/{number}": os.urandom(size) for number in range(count)}
        times = [*_timed(lambda: store.write_all(files))]
        times += _timed(lambda: [store.read(path) for path in files])
        store.delete(folder)
        found[library].append(times)
        return times[0]

    for library in LIBRARIES:  # first times set things up
        measure(library)
        found[library].clear()
    list(shuffled_rounds(LIBRARIES, rounds, measure))
    return [
        [
            name,
            library,
            *(Spread.of(column).show(".2f") for column in zip(*found[library], strict=True)),
        ]
        for library in LIBRARIES
    ]


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
