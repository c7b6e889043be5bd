"""Trials against an object store, and their judge; run by the servers of `trials.serve`."""

import contextlib
import dataclasses
import itertools
import re
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from tests.faults.oracle import bits, empty_state, fill, on_threads
from tests.faults.storeoracle import PATIENT, StoreOracle, client
from tests.faults.trials import Report, save, storage_is, writers_here
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.admin.cleaning import find_leftovers, remove_leftover
from trainkit.coordination import Communicator, MemoryStore
from trainkit.errors import TrainkitError
from trainkit.storage import open_storage

DEADLINE = 60.0
"""Seconds in which a save or a restore has ended, whatever the store does. With the limits of
`client` a request takes 2 s and is sent four times, and a save is tried twice."""

AT_ONCE = 8
"""Trials of a server that go on at the same time: some wait for a client's time limit."""

TRIES = 5
"""Of a trial in which the real server took longer to answer than a client waits."""


class Trial:
    """One script on one root."""

    def __init__(self, proxy, bucket, script, mode, *, remove=remove_leftover, deadline=DEADLINE,
                 timeout=DEADLINE):  # fmt: skip
        """Do nothing yet.

        Args:
            proxy: that plays scripts.
            bucket: where the root is made.
            script: to play.
            mode: of saving.
            remove: what `gc` removes by.
            deadline: seconds in which the work has to end.
            timeout: seconds that the manager gives a save.
        """
        self.proxy, self.script = proxy, script
        self.remove, self.deadline = remove, deadline
        self.options = dataclasses.replace(
            PATIENT, background=mode == "background", timeout=timeout
        )
        self.oracle = StoreOracle(bucket, world=script.world, size=script.size)
        self.wrong, self.played = [], None

    @property
    def hits(self):
        """How many requests the script's faults met."""
        return 0 if self.played is None else self.played.hits

    def only_slow(self, limit):
        """Whether all that went wrong is that the client gave up on a server that was slow.

        Half its limit counts as slow, since what is measured here is not all that it waits for.
        """
        slow = self.proxy.slowest(self.oracle.name) > limit / 2
        return slow and all(re.search(r"time(d )?out", text) for text in self.wrong)

    def managers(self, work):
        """Have ``work(manager, state, rank)`` done on each rank; the errors, by rank."""
        errors, store = [None] * self.script.world, MemoryStore()

        def rank_main(rank):
            world = self.script.world
            communicator = Communicator(store, rank, world, timeout=DEADLINE)
            state = empty_state(self.script.size)
            try:
                manager = CheckpointManager(
                    self.oracle.root, state, keep=2, options=self.options,
                    communicator=communicator if world > 1 else None,
                )  # fmt: skip
                work(manager, state, rank)
                manager.close()
            except (Exception, TrainkitError) as error:
                errors[rank] = error

        on_threads(self.script.world, rank_main)
        return errors

    def saved(self, tokens):
        """Save these in health; what is wrong."""

        def work(manager, state, rank):
            for token in tokens:
                fill(state, token, rank)
                save(manager, token)

        for token in tokens:
            self.oracle.attempt(token)
        errors = [error for error in self.managers(work) if error is not None]
        if not errors:
            for token in tokens:
                self.oracle.acknowledge(token)
        return [f"a save without a fault failed: {error!r}" for error in errors]

    def under_fault(self, work):
        """Play the script while ``work()`` is done, and judge how long that takes; its error."""
        began = time.monotonic()
        try:
            work()
            error = None
        except (Exception, TrainkitError) as raised:
            error = raised
        passed = time.monotonic() - began
        if passed > self.deadline:
            self.wrong.append(f"I5: it took {passed:.0f} s")
        return error

    def judge_error(self, error):
        """What is wrong with how the work ended."""
        script, wrong = self.script, self.wrong
        if error is None:
            if script.works is False:
                wrong.append("it says that it is done, which it cannot be")
            return
        if script.works:
            wrong.append(f"it failed, which it need not: {error!r}")
        if not isinstance(error, (OSError, TrainkitError)):
            wrong.append(f"an error of no kind: {error!r}")
        if not re.search(script.says, str(error)) or self.oracle.name not in str(error):
            wrong.append(f"the error does not say what happened, and where: {error!r}")

    def save(self):
        """A save under faults, between two in health."""
        oracle = self.oracle
        oracle.attempt(1), oracle.attempt(2)
        came_to, barrier = [None] * self.script.world, threading.Barrier(self.script.world)
        playing = contextlib.ExitStack()

        def work(manager, state, rank):
            fill(state, 1, rank)
            save(manager, 1)
            if barrier.wait(DEADLINE) == 0:
                self.played = playing.enter_context(
                    self.proxy.playing(oracle.name, self.script.faults)
                )
            barrier.wait(DEADLINE)
            fill(state, 2, rank)
            came_to[rank] = self.under_fault(lambda: save(manager, 2))
            if barrier.wait(2 * DEADLINE) == 0:
                playing.close()
                self.look_between(came_to)
            barrier.wait(2 * DEADLINE)
            oracle.attempt(3)
            fill(state, 3, rank)
            save(manager, 3)

        with playing:
            errors = [error for error in self.managers(work) if error is not None]
        self.wrong += [f"a save without a fault failed: {error!r}" for error in errors]
        if not errors:
            oracle.acknowledge(3)
        self.wrong += oracle.violations() + oracle.orphans()

    def look_between(self, came_to):
        """Judge the save under faults, before another one."""
        oracle = self.oracle
        oracle.acknowledge(1)
        if len({error is None for error in came_to}) > 1:
            self.wrong.append(f"not the same on all ranks: {came_to}")
        for error in came_to:
            self.judge_error(error)
        if all(error is None for error in came_to):
            oracle.acknowledge(2)
        token, wrong = oracle.now() if self.script.world == 1 else (None, [])
        self.wrong += wrong
        if not wrong and token is not None and token < oracle.acknowledged[-1]:
            self.wrong.append(f"I2: {oracle.acknowledged[-1]} was acknowledged, {token} is there")

    def restore(self):
        """A restore under faults, after two saves in health, and one in health after it."""
        oracle, results = self.oracle, [None] * self.script.world
        self.wrong += self.saved([1, 2])
        barrier, playing = threading.Barrier(self.script.world), contextlib.ExitStack()

        def work(manager, state, rank):
            if self.script.older:  # a listing that is old by the time of the restore
                manager.latest_step()
            if barrier.wait(DEADLINE) == 0:
                self.played = playing.enter_context(
                    self.proxy.playing(oracle.name, self.script.faults)
                )
            barrier.wait(DEADLINE)

            def do():
                found = manager.restore_latest()
                results[rank] = found, state["table"].get("token"), bits(state)

            error = self.under_fault(do)
            barrier.wait(2 * DEADLINE)
            playing.close()
            self.judge_error(error)

        with playing:
            errors = [error for error in self.managers(work) if error is not None]
        self.wrong += [f"{error!r}" for error in errors]
        if all(results):
            token, wrong = oracle._judged(results)
            self.wrong += wrong
            if not wrong and token != 2 and not (self.script.older and token == 1):
                self.wrong.append(f"I2: {token} is restored under the fault")
        self.wrong += oracle.violations()

    def open(self):
        """The next run opens a root that has checkpoints, under faults; then another does."""
        oracle = self.oracle
        self.wrong += self.saved([1])
        with self.proxy.playing(oracle.name, self.script.faults) as self.played:
            oracle.attempt(2)

            def work(manager, state, rank):
                fill(state, 2, rank)
                save(manager, 2)

            error = self.under_fault(lambda: self._raised(work))
        self.judge_error(error)
        if error is None:
            oracle.acknowledge(2)
        self.wrong += self.saved([3]) + oracle.violations()

    def tidy(self):
        """`gc` under faults, of a root with one step that was cut off and one that is committed.

        To a listing that comes late the second looks cut off, too.
        """
        oracle, storage = self.oracle, open_storage(self.oracle.root)
        self.wrong += self.saved([1])
        (manifest,) = (path for path in storage.tree() if path.endswith("MANIFEST.json"))
        folder, data = manifest.partition("/")[0], storage.read(manifest)
        storage.delete(manifest)
        storage.create(f"{folder[:-1]}f/state/table.json", b"{}")
        with self.proxy.playing(oracle.name, self.script.faults) as self.played:
            with contextlib.suppress(OSError):
                storage.tree()
            storage.create(manifest, data)

            def gc():
                for leftover in find_leftovers(storage, older_than=0.0):
                    self.remove(storage, leftover)

            error = self.under_fault(gc)
        self.judge_error(error)
        self.wrong += self.saved([2]) + oracle.violations() + oracle.orphans()

    def _raised(self, work):
        for error in self.managers(work):
            if error is not None:
                raise error

    def done(self, how):
        """Carry it out; what is wrong."""
        try:
            getattr(self, how)()
            self.wrong += self.oracle.uploads(self.remove)
        except (Exception, TrainkitError) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong.append(f"the trial broke off: {error!r} at {place}")
        finally:
            with contextlib.suppress(OSError, TrainkitError):
                storage = open_storage(self.oracle.root)
                storage.delete("")
                for upload in storage.uploads():
                    storage.abort_upload(upload)
        return self.wrong


def later(script, shift):
    """The same script, whose faults let so many more requests pass first.

    What must fail may then be done before its faults begin.
    """
    faults = [dataclasses.replace(fault, first=fault.first + shift) for fault in script.faults]
    works = None if shift and script.works is False else script.works
    return dataclasses.replace(script, faults=tuple(faults), works=works)


def play(share, variables, bucket, how, scripts, modes, *, broken=None, read_timeout=2.0,
         library="fsspec", shift=0, **options):  # fmt: skip
    """Play all scripts, in each mode of saving; several at a time.

    Args:
        share: of all this.
        variables: that a client of the real server needs.
        bucket: where roots are made.
        how: name of a method of `Trial`.
        scripts: to play.
        modes: of saving.
        broken: a storage in place of the real one.
        read_timeout: seconds after which a client gives a request up.
        library: of the client, as `client` has it.
        shift: how many more requests pass before faults; what meets none then is not counted.
        **options: of each trial.
    """
    report = Report()
    lock = threading.Lock()
    upstream = variables["AWS_ENDPOINT_URL"]
    with (
        client(variables, upstream, read_timeout, library) as proxy,
        writers_here(),
        storage_is(broken),
    ):

        def one(item):
            script, mode = item
            for _ in range(TRIES):
                trial = Trial(proxy, bucket, later(script, shift), mode, **options)
                wrong = trial.done(how)
                if not wrong or not trial.only_slow(read_timeout):
                    break
            if not trial.hits and shift == 0:
                wrong.append("the script met no request")
            with lock:
                if trial.hits or wrong:
                    report.add(f"{how} {mode}", wrong, script.name)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            # Those that wait first, so that others run beside them.
            items = sorted(itertools.product(scripts, modes), key=lambda item: -item[0].waits)
            list(pool.map(one, share.of(items)))
    return report
