"""How XGBoost's ranks begin, and what trainkit costs a round, against code written by hand.

    python -m benchmarks.strategies.xgboost_collective            # about four minutes
    python -m benchmarks.strategies.xgboost_collective --rounds 3 --blocks 50

Boot: two processes that have XGBoost imported. The worker goes first, as pods do, and looks for
rank 0 half a second before that is there. The clock runs from the moment when rank 0 begins to
connect until both ranks have the sum of an all-reduce. By hand is a RabitTracker on rank 0 and
CommunicatorContext on both, as the documentation of Kubeflow and XGBoost has it; the limit is
the same with the tracker up before the worker looks.

A round: two ranks under trainkit train in blocks of five rounds, by turns with what trainkit adds
(the guard over threads, SaveCheckpoints, ctx.log) and without; neighbouring blocks are compared.
By the clock a block differs from its neighbour by far more than trainkit adds, since each rank
waits for the other on cores that have more to do; processor time leaves the waiting out.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy
from trainkit.testing import free_port

MOST_BOOT, MOST_ROUND = 0.2, 1.01
HEAD_START = 0.5
"""Seconds between the worker's first look for rank 0 and rank 0's beginning."""
DEADLINE = 120.0
OURS, BY_HAND, LIMIT = "trainkit.run", "by hand, worker first", "by hand, tracker first"
ROUNDS_A_BLOCK = 5
PAIRS_A_TRAINING = 100
_FOUND = ("plain", "full", "plain cpu", "full cpu", "own")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both, and print what was found beside the targets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="starts (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=1000, help="pairs of (default: %(default)s)")
    parser.add_argument("--rank", choices=["hand", "ours", "blocks"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank is not None:
        _rank(args.rank, args.blocks)
        return
    warn_if_busy()
    blocks = f"{args.blocks} pairs of blocks of {ROUNDS_A_BLOCK} rounds"
    print(f"{machine()}; {args.rounds} starts, {blocks}\n")
    names = [OURS, BY_HAND, LIMIT]
    found = list(shuffled_rounds(names, args.rounds, _boot))
    rows = []
    for name in names:
        times = Spread.of([one[name] for one in found])
        beyond = Spread.of([one[name] - one[LIMIT] for one in found])
        rows.append([name, times.show(".0f", 1e3), beyond.show("+.0f", 1e3)])
    print_table(["start", "ms to the first all-reduce", "beyond the limit"], rows)
    beyond = Spread.of([one[OURS] - one[LIMIT] for one in found]).median
    text = f"{OURS}: {beyond * 1e3:+.0f} ms beyond the tracker's own"
    print(f"\n{_verdict(text, beyond <= MOST_BOOT, f'≤ {MOST_BOOT * 1e3:.0f} ms')}\n")
    found_rounds = _blocks(args.blocks)
    rows = []
    for what, clock in (("by the clock", ""), ("processor time", " cpu")):
        plain, full = found_rounds[f"plain{clock}"], found_rounds[f"full{clock}"]
        ratios = [b / a for a, b in zip(plain, full, strict=True)]
        ratio, (low, high) = Spread.of(ratios), _sure(ratios)
        times = [Spread.of(some).show(".2f", 1e3) for some in (plain, full)]
        rows.append([what, *times, ratio.show(".4f"), f"{low:.4f} – {high:.4f}"])
        text = f"a round under trainkit, {what}: {ratio.median:.4f} × of one without"
        print(_verdict(text, ratio.median <= MOST_ROUND, f"≤ {MOST_ROUND:g} ×"))
    print()
    names = ["a round", "ms without", "ms with what trainkit adds", "× without"]
    print_table([*names, "its median lies between (19 times of 20)"], rows)
    own = Spread.of(found_rounds["own"])
    share = own.median / statistics.median(found_rounds["plain"])
    print(f"\ntrainkit's callbacks take {own.show('.1f', 1e6)} µs of a round: {share:.4%}")


def _sure(values: Sequence[float]) -> tuple[float, float]:
    """Between which values the true median lies, with 95 %: by the ranks of a binomial."""
    ordered, half = sorted(values), len(values) / 2
    away = 0.98 * len(values) ** 0.5
    return ordered[max(0, int(half - away))], ordered[min(len(values) - 1, int(half + away))]


def _verdict(text: str, met: bool, target: str) -> str:
    return f"{text}; target {target}: {'met' if met else 'missed'}"


def _start(rank: int, port: int, folder: str, *arguments: str) -> "subprocess.Popen[str]":
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "WORKER_ADDRS": "worker-0",
        "OMP_NUM_THREADS": "1",
        "TRAINKIT_CHECKPOINT_DIR": folder,
    }
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name, *arguments],
        env={**os.environ, **place},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def _two_ranks(*arguments: str, folder: str = "") -> "Iterator[list[subprocess.Popen[str]]]":
    port = free_port()
    ranks = [_start(rank, port, folder, *arguments) for rank in range(2)]
    try:
        yield ranks
        for rank in ranks:
            if rank.wait(DEADLINE) != 0:
                raise SystemExit(f"a rank ended with {rank.returncode}")
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def _boot(name: str) -> float:
    """Seconds from rank 0's beginning to connect until both ranks have a sum."""
    with _two_ranks("--rank", "ours" if name == OURS else "hand") as ranks:
        for rank in ranks:
            _answer(rank)  # XGBoost is imported
        first, second = reversed(ranks) if name != LIMIT else ranks
        _say(first)
        time.sleep(HEAD_START)
        _say(second)
        answers = [json.loads(_answer(rank)) for rank in ranks]
    began = answers[0]["began"] if name != LIMIT else answers[1]["began"]
    return float(max(one["met"] for one in answers) - began)


def _answer(rank: "subprocess.Popen[str]") -> str:
    assert rank.stdout is not None
    for line in rank.stdout:
        if line.startswith(("ready", "{")):  # XGBoost prints its own
            return line
    raise SystemExit("a rank ended early")


def _say(rank: "subprocess.Popen[str]") -> None:
    assert rank.stdin is not None
    rank.stdin.write("go\n")
    rank.stdin.flush()


def _blocks(pairs: int) -> dict[str, list[float]]:
    """Seconds of a round in each block, ``plain`` and ``full``, by the clock and of the process
    (``cpu``); and of each call of trainkit's callbacks, ``own``."""
    found: dict[str, list[float]] = {name: [] for name in _FOUND}
    # A round takes longer with every thousand trees, so there are several trainings.
    for begin in range(0, pairs, PAIRS_A_TRAINING):
        count = str(min(PAIRS_A_TRAINING, pairs - begin))
        with (
            tempfile.TemporaryDirectory(prefix="trainkit-") as folder,
            _two_ranks("--rank", "blocks", "--blocks", count, folder=folder) as ranks,
        ):
            for name, values in json.loads(_answer(ranks[0])).items():
                found[name] += values
    return found


def _rank(what: str, blocks: int) -> None:
    """What one rank does."""
    import xgboost  # noqa: F401 - its import is no part of a start

    if what == "blocks":
        _train_blocks(blocks)
        return
    import trainkit.runtime
    import trainkit.strategies.xgboost.collective  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    met = _by_hand() if what == "hand" else _by_trainkit()
    print(json.dumps({"began": began, "met": met}), flush=True)


def _by_hand() -> float:
    import numpy as np
    from xgboost import collective
    from xgboost.tracker import RabitTracker

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tracker = None
    if rank == 0:
        tracker = RabitTracker(host_ip=host, n_workers=size, port=port, sortby="task")
        tracker.start()
    with collective.CommunicatorContext(
        dmlc_tracker_uri=host, dmlc_tracker_port=port, dmlc_task_id=str(rank)
    ):
        collective.allreduce(np.ones(1), collective.Op.SUM)
        met = time.monotonic()
    if tracker is not None:
        tracker.wait_for()
    return met


def _by_trainkit() -> float:
    import trainkit

    def main(ctx: trainkit.Context) -> float:
        ctx.all_reduce(1.0, "sum")
        return time.monotonic()

    return float(trainkit.run(main, strategy="xgboost:collective"))


def _train_blocks(blocks: int) -> None:
    import numpy as np
    import xgboost

    import trainkit
    from trainkit.strategies.xgboost.collective import Collective

    strategy = Collective()
    guard = strategy._guard

    class Turns(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        """One training in blocks, in which the callbacks of trainkit are called by turns."""

        def __init__(self, inner: list[Any], guard: Any, blocks: int) -> None:
            super().__init__()
            self.inner, self.guard = inner, guard
            order = random.Random(0)  # the same on both ranks
            pairs = [(False, True), (True, False)]
            self.full = [False, *(full for _ in range(blocks) for full in order.choice(pairs))]
            self.found: dict[str, list[float]] = {name: [] for name in _FOUND}

        def before_training(self, model: Any) -> Any:
            for one in self.inner:
                model = one.before_training(model)
            return model

        def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            if epoch % ROUNDS_A_BLOCK == 0:
                if self.full[epoch // ROUNDS_A_BLOCK]:
                    self.guard.install()
                self.began, self.spent = time.perf_counter(), time.process_time()
            return False

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            block, number = divmod(epoch, ROUNDS_A_BLOCK)
            if self.full[block]:
                began = time.perf_counter()
                for one in self.inner:
                    one.after_iteration(model, epoch, evals_log)
                self.found["own"].append(time.perf_counter() - began)
            if number == ROUNDS_A_BLOCK - 1:
                took = (time.perf_counter() - self.began) / ROUNDS_A_BLOCK
                spent = (time.process_time() - self.spent) / ROUNDS_A_BLOCK
                self.guard.remove()
                if block:  # the first is there to be warm
                    name = "full" if self.full[block] else "plain"
                    self.found[name].append(took)
                    self.found[f"{name} cpu"].append(spent)
            return False

    def main(ctx: trainkit.Context) -> None:
        rng = np.random.default_rng(ctx.rank)
        x = rng.normal(size=(60_000, 30)).astype(np.float32)
        data = xgboost.QuantileDMatrix(x, x[:, 0] + x[:, 1] ** 2 > 1)
        # Nothing is learnt, so that every round grows the same tree and takes as long.
        params = {"objective": "binary:logistic", "nthread": 1, "max_depth": 6, "eta": 0.0}

        class Shown(xgboost.callback.TrainingCallback):  # type: ignore[misc]
            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
                ctx.log(epoch + 1, steps=10**6)
                return False

        booster = xgboost.Booster(params)
        # without the saves themselves, which other benchmarks measure
        checkpoints = ctx.checkpoints(save=10**9, booster=booster)
        turns = Turns([Shown(), ctx.save_callback(checkpoints)], guard, blocks)
        guard.remove()
        xgboost.train(params, data, len(turns.full) * ROUNDS_A_BLOCK, callbacks=[turns])
        print(json.dumps(turns.found), flush=True)

    trainkit.run(main, strategy=strategy)


if __name__ == "__main__":
    main()
