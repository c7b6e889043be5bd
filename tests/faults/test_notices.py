"""T11: SIGTERM in each phase of a job, and SIGKILL when the time of grace is over.

A job that ends in time ends with 143, and the last step that it had done is saved, unless it
says that there was no time for that. One that does not is killed, and what was committed last is
restored.
"""

import itertools
import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.trials import WITH_TORCH, Report
from trainkit.checkpoint.format import catalog
from trainkit.storage import open_storage
from trainkit.testing import run_ranks, start_ranks

pytest.importorskip("torch")

from tests.faults.stopped import BROKEN, train

NOTICES = 16
"""Of CI; a soak does ten times as many."""

PHASES = {
    # name: (seconds within which the notice comes after the phase has begun, what it waits for)
    "imports": (1.5, 0.0),
    "restore": (0.15, 0.0),
    "compile": (4.0, 0.0),
    "first step": (0.3, 1.0),
    "step": (0.1, 0.0),
    "evaluation": (0.3, 2.5),
    "deaf evaluation": (0.3, 2.5),
    "save": (0.12, 0.0),
    "upload": (0.4, 0.0),
    "data": (0.3, 2.5),
}
UNHEARD = ("imports", "restore", "compile")
"""Phases before all ranks can be told by one of them."""

GRACES = (1.0, 5.0, 30.0)
SIZES = {"save": 1 << 22, "upload": 1 << 18}
"""Numbers of 8 bytes in the state, so that a save lasts; 1000 elsewhere. The server of the object
store has room for a gigabyte, and what is removed still takes its place."""

BEGUN = 6
"""Steps that each job has done, and saved, before it is started."""

UNASKED = "no step has asked whether to stop"
"""What a rank says that ends at once, since it does not know of a training that could stop."""

SIGNALLED = (143, -signal.SIGTERM)
"""Exit code, and the end of a process in which nobody listened yet: 143 to who started it, too."""


@dataclass
class Trial:
    """One notice: where, what came of it, and what was wrong."""

    phase: str
    grace: float
    world: int
    codes: list = field(default_factory=list)
    seconds: float = 0.0
    """From the notice to the end of the last rank."""
    killed: bool = False
    declined: bool = False
    """Whether it said that there was no time for a save."""
    unasked: bool = False
    """Whether a rank had not asked yet whether to stop, so that it ended at once."""
    saved: bool = False
    """Whether the step at the notice is what a restart goes on from, or one after it."""
    wrong: list = field(default_factory=list)

    def __str__(self):
        what = [word for word in ("killed", "declined", "unasked", "saved") if getattr(self, word)]
        who = f"{self.phase}, {self.world} rank(s), {self.grace:.0f} s of grace"
        return f"{who}: {self.codes} after {self.seconds:.2f} s {' '.join(what)}"


class Bench:
    """Where trials are made."""

    def __init__(self, top, s3, broken=None):
        self._top, self._s3, self._broken = top, s3, broken
        self._numbers = itertools.count()
        self._begun = {}

    def trial(self, phase, grace, world, rng):
        """Tell a job to stop in ``phase``, kill it after ``grace`` seconds, start it again."""
        trial = Trial(phase, grace, world)
        folder = self._top / f"trial{next(self._numbers)}"
        folder.mkdir()
        size = SIZES.get(phase, 1000)
        url = self._root(folder, world, size, remote=phase == "upload")
        within, lasts = PHASES[phase]
        call = {
            "at": BEGUN + rng.randint(2, 9),
            "seconds": rng.uniform(0.5, 1.0) * lasts,
            "size": size,
            "broken": self._broken,
        }
        # A compiler that is killed leaves files, too.
        env = {"TRAINKIT_GRACE_PERIOD": str(grace), "TMPDIR": str(folder),
               "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}  # fmt: skip
        name = "save" if phase == "upload" else phase
        with start_ranks(
            train, world, url, str(folder), name, kwargs=call, env=env, timeout=200.0,
            preload=WITH_TORCH,
        ) as ranks:  # fmt: skip
            for rank in range(world):
                _await_phase(folder, rank, ranks)
            time.sleep(rng.uniform(0, within))
            # Before they have met, nobody can tell the others; a launcher tells all.
            told = list(ranks)
            if world > 1 and phase not in UNHEARD and rng.random() < 0.5:
                told = [rng.choice(told)]
            noticed = time.monotonic()
            for handle in told:
                handle.signal(signal.SIGTERM)
            while any(h.running for h in ranks) and time.monotonic() < noticed + grace:
                pass  # looking takes a millisecond
            trial.seconds = time.monotonic() - noticed
            trial.killed = any([handle.kill() for handle in ranks])
            results = [handle.wait(60.0) for handle in ranks]
            trial.codes = [result.exit_code for result in results]
            errors = [result.stderr for result in results]
            trial.declined = any("no time to save it" in text for text in errors)
            silent = [rank for rank, text in enumerate(errors) if UNASKED in text]
            output = "".join(f"rank {r.rank}: {r.stderr[-1500:]}" for r in results)
        self._judge(trial, url, folder, size, noticed, silent)
        trial.wrong = [f"{text}\n{output}" for text in trial.wrong]
        return trial

    def _root(self, folder, world, size, *, remote):
        """A root with a step in it that an earlier start of the job saved."""
        if remote:
            url = f"{self._s3}/{folder.name}"
            self._begin(url, world, size)
            return url
        if (world, size) not in self._begun:
            self._begun[world, size] = self._top / f"begun-{world}-{size}"
            self._begin(str(self._begun[world, size]), world, size)
        return str(shutil.copytree(self._begun[world, size], folder / "root"))

    def _begin(self, url, world, size):
        folder = self._top / f"beginning{next(self._numbers)}"
        folder.mkdir()
        _run_to_the_end(world, url, folder, steps=BEGUN, size=size)

    def _judge(self, trial, url, folder, size, noticed, silent):
        """Start again, and compare what is restored with what was done and saved.

        Args:
            silent: the ranks that say that no step has asked whether to stop.
        """
        diaries = [_read(folder, rank) for rank in range(trial.world)]
        trial.unasked = bool(silent)
        for rank in silent:
            if any(e["what"] == "saved" and e["at"] <= noticed for e in diaries[rank]):
                trial.wrong.append(f"rank {rank} had asked, and says that no step has")
        done = [
            e["value"] for d in diaries for e in d if e["what"] == "step" and e["at"] <= noticed
        ]
        step = max([BEGUN, *done])
        durable = max([BEGUN, *(e["value"] for d in diaries for e in d if e["what"] == "saved")])
        newest = catalog.look(open_storage(url)).committed[0].step
        again = folder / "again"
        again.mkdir()
        results = _run_to_the_end(
            trial.world, url, again, steps=newest + 2, size=size, broken=self._broken
        )
        restored = []
        for rank, result in enumerate(results):
            if result.exit_code != 0:
                trial.wrong.append(f"started again it ends with {result.exit_code}")
            told = [e["value"] for e in _read(again, rank) if e["what"] == "restored"]
            restored += told
            if told and len(set(told[0])) > 1:
                trial.wrong.append(f"I1: step, progress and numbers are {told[0]}")
        found = min((values[0] for values in restored), default=0)
        trial.saved = found >= step
        # What a process had sent to a store before it was killed may be done after that.
        if found < max(newest, durable) or (found > newest and not trial.killed):
            trial.wrong.append(
                f"I2: {durable} was saved, {newest} is committed, {found} is restored"
            )
        # Only a second can be too short for what is saved here.
        declined = trial.declined and trial.grace == 1.0
        first = trial.unasked and step == BEGUN + 1
        if not (trial.killed or trial.saved or declined or first):
            trial.wrong.append(f"it ended in time, step {step} was done, and {found} is restored")
        # Who ends before it has asked agrees with nobody, and is a lost rank to the others.
        lost = {138} if trial.unasked and trial.world > 1 else set()
        if not trial.killed and not set(trial.codes) <= {*SIGNALLED, *lost}:
            trial.wrong.append(f"it ends with {trial.codes}")


def _run_to_the_end(world, url, folder, **call):
    return run_ranks(
        train, world, url, str(folder), None, kwargs=call, timeout=120.0, check=False,
        preload=WITH_TORCH,
    )  # fmt: skip


def _await_phase(folder, rank, ranks):
    deadline = time.monotonic() + 120.0
    while not any(entry["what"] == "phase" for entry in _read(folder, rank)):
        assert ranks[rank].running, f"it ended before its phase: {ranks[rank].output()}"
        assert time.monotonic() < deadline, f"it comes to no phase: {ranks[rank].output()}"


def _read(folder, rank):
    path = Path(folder) / f"rank-{rank}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def chosen(count, rng):
    """``count`` times a phase, a time of grace and a number of ranks, as even as can be."""
    of_phase = [
        rng.sample([(phase, grace, world) for grace in GRACES for world in (1, 2)], 6)
        for phase in PHASES
    ]
    every = list(itertools.chain.from_iterable(zip(*of_phase, strict=True)))
    return itertools.islice(itertools.cycle(every), count)


def p99(values):
    """The 99th percentile; of a few values, the greatest."""
    return sorted(values)[max(0, -(-99 * len(values) // 100) - 1)] if values else 0.0


def summary(grace, trials):
    """What became of these, in a line."""
    killed, declined, saved = (
        sum(getattr(trial, what) for trial in trials) for what in ("killed", "declined", "saved")
    )
    ends = [trial.seconds for trial in trials if not trial.killed]
    return (
        f"{grace:.0f} s of grace: {len(trials)} notices, saved {saved / max(1, len(trials)):.0%}, "
        f"killed {killed}, declined {declined}; from notice to end p99 {p99(ends):.2f} s"
    )


def test_notices_in_each_phase(tally, scale, tmp_path, s3):
    rng, report, began = random.Random(8), Report(), time.monotonic()
    bench = Bench(tmp_path, s3)
    trials = []
    for phase, grace, world in chosen(NOTICES * scale, rng):
        trial = bench.trial(phase, grace, world, rng)
        trials.append(trial)
        report.add(phase, trial.wrong, f"{world} rank(s), {grace:.0f} s")
        print(trial)
    report.seconds = time.monotonic() - began
    tally("T11 notice to stop", report)
    for grace in GRACES:
        print(summary(grace, [trial for trial in trials if trial.grace == grace]))
    report.check()
    assert report.count == NOTICES * scale
    # No phase here lasts as long as that, and nobody waits for a rank that ended at once.
    patient = [trial for trial in trials if trial.grace == 30.0]
    assert all(trial.saved or trial.unasked for trial in patient)
    assert not any(trial.killed for trial in patient)


@pytest.mark.parametrize("broken", [name for name in BROKEN if name])
def test_control(tmp_path, broken):
    bench, rng = Bench(tmp_path, None, broken), random.Random(1)
    # A notice may come right after a save, where one that does not save does nothing wrong.
    assert any(bench.trial("step", 30.0, 1, rng).wrong for _ in range(5))
