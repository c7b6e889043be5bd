"""How fast output of processes is copied with a prefix, against cat and torchrun's tee.

    python -m benchmarks.launch.output             # a minute; --rounds 3 for a look

Each contender's output goes through a pipe to a reader that discards it. The time is from the
start of the processes until that reader has all.
"""

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from torch.distributed.elastic.multiprocessing.tail_log import TailLog

from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy
from trainkit.processes.output import OutputPump

LINES = 500_000
UNBUFFERED = 200_000

LIMIT, TEXT, JSON, PEER = "limit: cat", "trainkit", "trainkit, JSON", "torchrun's tee"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all contenders with one process and with four."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        lines = Path(folder) / "lines"
        with lines.open("w") as file:
            for step in range(LINES):
                file.write(f"step {step:07d} loss 0.123456 lr 0.001000 tokens/s 123456.7\n")
        size = lines.stat().st_size
        block = ("cat", str(lines))
        single = ("grep", "--line-buffered", "-m", str(UNBUFFERED), "", str(lines))
        print(machine())
        for what, command, count, number, length in (
            ("one process, 64 KiB a write", block, 1, LINES, size),
            ("four processes, 64 KiB a write", block, 4, LINES, size),
            ("four processes, one write a line", single, 4, UNBUFFERED, size * UNBUFFERED // LINES),
        ):
            measure = partial(_measure, command=command, count=count, folder=Path(folder))
            names = [LIMIT, TEXT, JSON, PEER]
            rounds = list(shuffled_rounds(names, args.rounds, measure))
            rows = []
            for name in names:
                times = Spread.of([times[name] for times in rounds])
                ratio = Spread.of([times[name] / times[TEXT] for times in rounds])
                speed = f"{count * length / times.median / 1e6:.0f}"
                rows.append(
                    [
                        name,
                        times.show(".3f"),
                        f"{count * number / times.median / 1e6:.2f}",
                        speed,
                        "" if name == TEXT else ratio.show(".2f"),
                    ]
                )
            print(f"\n### {what[0].upper()}{what[1:]}\n\n{args.rounds} rounds\n")
            print_table(["contender", "s", "million lines/s", "MB/s", "time × trainkit's"], rows)


def _measure(name: str, *, command: Sequence[str], count: int, folder: Path) -> float:
    ways: dict[str, Callable[[Sequence[str], int, int, Path], None]] = {
        LIMIT: _cat,
        TEXT: partial(_pump, json=False),
        JSON: partial(_pump, json=True),
        PEER: _tee,
    }
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin is not None
    start = time.perf_counter()
    ways[name](command, count, reader.stdin.fileno(), folder)
    reader.stdin.close()
    reader.wait()
    return time.perf_counter() - start


def _cat(command: Sequence[str], count: int, out: int, folder: Path) -> None:
    """Nothing but one more pipe for each process."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            read, write = os.pipe()
            stack.enter_context(subprocess.Popen(command, stdout=write))
            os.close(write)
            stack.enter_context(subprocess.Popen(["cat"], stdin=read, stdout=out))
            os.close(read)


def _pump(command: Sequence[str], count: int, out: int, folder: Path, *, json: bool) -> None:
    pump = OutputPump(json=json, out=out)
    with contextlib.ExitStack() as stack:
        for rank in range(count):
            read, write = os.pipe()
            stack.enter_context(subprocess.Popen(command, stdout=write))
            os.close(write)
            pump.add(read, stream="stdout", label=f"worker-1 r{rank}", rank=rank)
    pump.drain(600)
    pump.close()


def _tee(command: Sequence[str], count: int, out: int, folder: Path) -> None:
    """``--tee``: processes write files, which are read again ten times a second."""
    with os.fdopen(os.dup(out), "w") as file, _files(folder, count) as paths:
        names = dict(enumerate(map(str, paths)))
        prefixes = {rank: f"[worker-1 r{rank}] " for rank in range(count)}
        tail = TailLog("worker", names, file, prefixes).start()
        with contextlib.ExitStack() as stack:
            for path in paths:
                written = stack.enter_context(path.open("wb"))
                stack.enter_context(subprocess.Popen(command, stdout=written))
        tail.stop()


@contextlib.contextmanager
def _files(folder: Path, count: int) -> Iterator[list[Path]]:
    paths = [folder / f"{rank}.log" for rank in range(count)]
    yield paths
    for path in paths:
        path.unlink()


if __name__ == "__main__":
    main()
