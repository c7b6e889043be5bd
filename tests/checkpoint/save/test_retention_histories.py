"""Saves, failures, kills, damage, pins and restarts in any order: what stays is what should.

CI runs a sample. All 10,000 histories take 5 minutes of processor time, and more of waiting:

    python -m pytest -m slow tests/checkpoint/save/test_retention_histories.py
"""

import contextlib
import math
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trainkit.checkpoint import KeepAny, KeepBest, KeepEvery, KeepLast
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.pins import pin, unpin
from trainkit.checkpoint.save.generation import claim
from trainkit.checkpoint.save.retention import Retention, remove_step
from trainkit.errors import UsageError
from trainkit.storage import LocalStorage

DATA = b"0123456789"
_MEMORY = Path("/dev/shm")  # a history is some hundred flushes, which cost nothing there


class Killed(BaseException):
    """The process ends here, without any clean-up."""


class FailingStorage(LocalStorage):
    """Fails once, or dies, at the n-th operation that changes anything."""

    left = 0
    error: BaseException | None = None

    def arm(self, at, error):
        self.left, self.error = at, error

    def _tick(self):
        self.left -= 1
        if self.error and (self.left == 0 or (self.left < 0 and isinstance(self.error, Killed))):
            raise self.error

    def create(self, path, data):
        self._tick()
        super().create(path, data)

    def write(self, path, parts):
        self._tick()
        super().write(path, parts)

    def delete(self, path):
        self._tick()
        super().delete(path)


class Raising:
    """A user's policy with a mistake in it."""

    def keep(self, saved):
        return [1 // (len(saved) % 2)]


def best(rows):
    finite = [row for row in rows if row["loss"] is not None and math.isfinite(row["loss"])]
    return {min(finite, key=lambda row: (row["loss"], -row["age"]))["step"]} if finite else set()


def every_4th(rows):
    steps = [row["step"] for row in rows]
    return {min(s for s in steps if s // 4 == n) for n in {s // 4 for s in steps} if n}


POLICIES = {
    # each with what it keeps, said another way; rows are newest first
    "last 1": (KeepLast(1), lambda rows: {row["step"] for row in rows[:1]}),
    "last 3": (KeepLast(3), lambda rows: {row["step"] for row in rows[:3]}),
    "best": (KeepBest("loss"), best),
    "every 4th": (KeepEvery(4), every_4th),
    "last 2, best, every 4th": (
        KeepAny(KeepLast(2), KeepBest("loss"), KeepEvery(4)),
        lambda rows: {row["step"] for row in rows[:2]} | best(rows) | every_4th(rows),
    ),
    "nothing": (KeepAny(), lambda rows: set()),
    "raising": (Raising(), None),
}


class Histories(RuleBasedStateMachine):
    """One root, of which a table of what was committed is kept beside."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None))
        self.storage = FailingStorage(self.root)
        self.rows = {}  # step folder → step, loss, age, whole, pinned; committed and not removed
        self.step = 0
        self.ever_damaged = False

    def teardown(self):
        shutil.rmtree(self.root)

    @initialize(name=st.sampled_from(sorted(POLICIES)))
    def begin(self, name):
        self.policy, self.reference = POLICIES[name]
        self.open()

    def open(self):
        self.storage.arm(0, None)
        self.generation = claim(self.storage).generation
        self.attempt = 0
        self.retention = Retention(self.storage, self.policy, generation=self.generation)

    @rule(loss=st.sampled_from([None, math.nan, 0.1, 0.2, 0.3]), again=st.booleans())
    def save(self, loss, again):
        self.step += not (again and self.step)
        self.save_and_clean(loss)

    @rule(step=st.integers(1, 20))
    def go_back(self, step):
        self.open()
        self.step = min(step, self.step)

    @rule()
    def restart(self):
        self.open()

    @rule(at=st.integers(1, 12))
    def fail(self, at):
        self.storage.arm(at, OSError(5, "Input/output error"))
        self.step += 1
        with contextlib.suppress(OSError):
            self.save_and_clean(None)
        self.storage.arm(0, None)

    @rule(at=st.integers(1, 12))
    def die(self, at):
        self.storage.arm(at, Killed())
        self.step += 1
        with contextlib.suppress(Killed):
            self.save_and_clean(None)
        self.open()

    @precondition(lambda self: sum(row["whole"] for row in self.rows.values()) > 1)
    @rule(which=st.integers(0, 3), how=st.sampled_from(["manifest", "file", "mark"]))
    def damage(self, which, how):
        """Never the last whole one: nothing could be promised then."""
        folder = self.whole()[which % len(self.whole())]
        path = self.root / folder.name / ("MANIFEST.json" if how == "manifest" else "state/a.json")
        if how == "mark":
            catalog.quarantine(self.storage, folder, "a test says so")
        else:
            path.write_bytes(path.read_bytes()[:-1])
        self.rows[folder]["whole"] = False
        self.ever_damaged = True

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 5), on=st.booleans())
    def pin(self, which, on):
        folder = sorted(self.rows, key=lambda f: f.age)[which % len(self.rows)]
        (pin if on else unpin)(self.storage, folder)
        self.rows[folder]["pinned"] = on

    def save_and_clean(self, loss):
        folder = StepFolder(self.step, self.generation, self.attempt)
        self.attempt += 1
        try:
            self.commit(folder, loss)
        except OSError:
            self.storage.arm(0, None)
            remove_step(self.storage, folder)
            raise
        age = len(self.rows) and max(row["age"] for row in self.rows.values()) + 1
        self.rows[folder] = {
            "step": self.step, "loss": loss, "age": age, "whole": True, "pinned": False
        }  # fmt: skip
        ended = "broken off"
        try:
            self.retention.apply()
            ended = "complete"
        except UsageError:
            ended = "refused"
        finally:
            self.check_what_stayed(ended)

    def commit(self, folder, loss):
        self.storage.write(f"{folder.name}/state/a.json", [DATA])
        manifest = Manifest(
            step=folder.step,
            generation=folder.generation,
            attempt=folder.attempt,
            world_size=1,
            created="2030-01-01T00:00:00+00:00",
            written_by="test",
            files={"state/a.json": FileRecord(len(DATA), (digest(DATA),))},
            entries={},
            metrics={} if loss is None else {"loss": loss},
        )
        self.storage.create(f"{folder.name}/MANIFEST.json", manifest.to_bytes())

    def whole(self):
        """Newest first, by the table."""
        found = [folder for folder, row in self.rows.items() if row["whole"]]
        return sorted(found, key=lambda folder: folder.age, reverse=True)

    def expected(self):
        """What the reference keeps of the whole ones, one a step, and the newest."""
        one_a_step = {}
        for folder in self.whole():
            one_a_step.setdefault(folder.step, folder)
        rows = [self.rows[folder] for folder in one_a_step.values()]
        steps = self.reference(rows) | {rows[0]["step"]}
        return {folder for step, folder in one_a_step.items() if step in steps}

    def check_what_stayed(self, ended):
        left = {
            folder for folder in self.rows if (self.root / folder.name / "MANIFEST.json").exists()
        }
        gone = set(self.rows) - left
        pinned = {folder for folder, row in self.rows.items() if row["pinned"]}
        assert not gone & pinned
        assert self.whole()[0] in left
        if self.reference is None:
            if ended == "refused":
                assert not gone
        else:
            # Files that are lost are noticed among the newest three that stay, so only there
            # is a policy sure to count none but whole ones.
            if not self.ever_damaged or self.policy == KeepLast(3):
                assert not gone & self.expected()
            if not self.ever_damaged and ended == "complete":
                assert left == self.expected() | pinned
            if ended == "complete":
                cut_off = catalog.uncommitted(self.storage)
                assert all(folder.generation == self.generation for folder in cut_off)
        for folder in gone:
            del self.rows[folder]

    @invariant()
    def the_newest_whole_one_is_found(self):
        found = next((folder for folder, _ in catalog.valid(self.storage)), None)
        assert found == next(iter(self.whole()), None)


def run(num_histories):
    """Derandomised where it is few, so that CI is the same each time."""
    chosen = settings(
        max_examples=num_histories,
        stateful_step_count=20,
        deadline=None,
        derandomize=num_histories < 1000,
        database=None,
        # A long history that fails is read more quickly than it is shrunk.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=chosen)


NAME = "T12 histories of retention"


def test_a_sample_of_histories(tally, scale):
    run(100 * scale)
    tally.passed(NAME, 100 * scale)


def test_control(monkeypatch):
    """A retention that asks its policy, and heeds it not."""
    monkeypatch.setattr(Retention, "_ask", lambda *_: frozenset())
    with pytest.raises(AssertionError):
        run(100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_histories(tally):
    count = int(os.environ.get("TRAINKIT_TEST_HISTORIES", "10000"))
    run(count)
    tally.passed(NAME, count)
