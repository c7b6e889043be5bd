"""What the fault classes share: modes of saving, roots to begin from, the run of a class."""

import contextlib
import dataclasses
import inspect
import itertools
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.oracle import QUICK, Oracle, empty_state, fill
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint import manager as manager_module
from trainkit.checkpoint.save import messages, process, worker
from trainkit.testing import run_ranks

_MEMORY = "/dev/shm"

PLAIN = ("numpy", "trainkit.checkpoint")
"""What ranks find imported that save without a framework."""

WITH_TORCH = (
    "torch", "torch._dynamo", "trainkit.checkpoint", "trainkit.strategies.torch",
    "trainkit.data.torch", "trainkit.recipes.mnist",
)  # fmt: skip
"""What ranks of torch find imported; a start takes a quarter of the time with all of these."""

MODES = ("foreground", "background")
"""Written while training waits, or beside it by another process; acknowledged by ``wait``."""


def options_of(mode, options=QUICK):
    """Options to save in ``mode``."""
    return dataclasses.replace(options, background=mode == "background")


def save(manager, step):
    """Save ``step`` and return when it is acknowledged."""
    manager.save(step)
    manager.wait()


def children_of(pid):
    """Processes that any thread of a process has started; of one that has ended, none."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            found += map(int, thread.read_text().split())
    return found


class _Forked:
    """A forked process, as its parent looks at one that it started."""

    def __init__(self, pid):
        self._pid = pid

    def wait(self, timeout=None):
        end = time.monotonic() + (3600.0 if timeout is None else timeout)
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("the writer", timeout)
            time.sleep(0.001)

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)


@contextlib.contextmanager
def forked_writers():
    """Have managers of this process fork the process that writes.

    It does what it does otherwise, but does not import everything anew, which takes ten times
    as long as all else in a trial; and it has the hooks of the process that it is forked from.
    """

    def start(self):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                os.setsid()
                worker.main(theirs.detach(), self._url, self._tier)
            finally:
                os._exit(1)
        theirs.close()
        self._process, self._socket, self._shared = _Forked(pid), ours, 0

    real = process.WriterProcess._start
    process.WriterProcess._start = start
    try:
        yield
    finally:
        process.WriterProcess._start = real


@contextlib.contextmanager
def writers_here():
    """Have managers of this process write on a thread, by the code of the other process."""

    def serve_line(line, url, tier):
        with line:
            one = worker._Worker(line, url, tier)
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    one.take(*messages.receive(line))

    class Here:
        def __init__(self, thread):
            self.wait = thread.join

    def start(self):
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=serve_line, args=(theirs, self._url, self._tier))
        thread.start()
        self._process, self._socket, self._shared = Here(thread), ours, 0

    real = process.WriterProcess._start
    process.WriterProcess._start = start
    try:
        yield
    finally:
        process.WriterProcess._start = real


@contextlib.contextmanager
def storage_is(storage):
    """Have managers of this process open local roots by ``storage``; None leaves it as it is."""
    real = manager_module.open_storage
    if storage is not None:
        manager_module.open_storage = storage
    try:
        yield
    finally:
        manager_module.open_storage = real


@dataclass
class Report:
    """What a class came to: faults by kind, and each violation with its fault."""

    faults: dict = field(default_factory=dict)
    violations: list = field(default_factory=list)
    seconds: float = 0.0
    notes: list = field(default_factory=list)

    def add(self, kind, wrong, fault=""):
        """Count one fault of ``kind``, with what is wrong after it."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.violations += [f"{kind} {fault}: {text}" for text in wrong]

    def join(self, other):
        """Add another's."""
        for kind, count in other.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count
        self.violations += other.violations
        self.notes += other.notes
        self.seconds = max(self.seconds, other.seconds)
        return self

    def check(self):
        """Fail with the first violations, if there are any."""
        assert not self.violations, "\n".join([f"{len(self.violations)}:", *self.violations[:9]])

    @property
    def count(self):
        """All faults."""
        return sum(self.faults.values())


def serve(function, *args, shards=2, timeout=280.0, disk=False, preload=PLAIN):
    """Run ``function(share, *args)`` in trial servers; the joined report.

    Args:
        function: at the top level of a module; its first argument is a `Share`.
        *args: pickled.
        shards: number of servers that share the trials. A server is forked, and has one thread.
        timeout: seconds for all.
        disk: whether roots lie on a disk. In memory a trial takes a fifth of the time, and to a
            process that is killed, or gets an error, the two are the same.
        preload: modules that servers find imported.
    """
    in_memory = not disk and os.access(_MEMORY, os.W_OK) and _free(_MEMORY) > 1 << 28
    with tempfile.TemporaryDirectory(prefix="faults-", dir=_MEMORY if in_memory else None) as top:
        results = run_ranks(
            _server, shards, function.__module__, function.__name__, _file_of(function), args, top,
            timeout=timeout, preload=preload,
        )  # fmt: skip
    report = Report()
    for result in results:
        report.join(result.value)
    return report


def _free(folder):
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


class Share:
    """The part of a class that one server does."""

    def __init__(self, number, shards, folder):
        self.number, self.shards, self.folder = number, shards, Path(folder)
        self._roots = itertools.count()

    def of(self, items):
        """Every n-th item, so that the servers' parts are alike."""
        return itertools.islice(items, self.number, None, self.shards)

    @contextlib.contextmanager
    def root(self, oracle=None):
        """The path of a new root; where ``oracle`` is given, a copy of its root and itself."""
        path = self.folder / f"root{next(self._roots)}"
        if oracle is not None:
            shutil.copytree(oracle.root, path)
        try:
            yield path if oracle is None else oracle.copy(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _file_of(function):
    return inspect.getsourcefile(function)


def _server(module, name, file, args, top):
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    number, shards = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with tempfile.TemporaryDirectory(dir=top) as folder:
        # What is imported late is here before any fork, and no trial fails in an import.
        Oracle(Path(folder) / "warm", keep=1).save(1)
        report = _load(module, name, file)(Share(number, shards, folder), *args)
    report.seconds = time.monotonic() - began
    return report


def _load(module, name, file):
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(module, file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


def beginning(folder, scenario, *, world=1, storage=None):
    """An oracle with a root to begin from.

    Args:
        folder: where the root is made.
        scenario: "first" has nothing, "over" two saves, of which the next is done over an
            existing step, "retention" as many as are kept, so that the next removes one.
        world: number of ranks that will save.
        storage: that saves; the real one by default.
    """
    oracle = Oracle(Path(folder) / f"begin-{scenario}-{world}", keep=2, world=world)
    if scenario == "first":
        oracle.root.mkdir(parents=True)
        return oracle
    for token in (1, 2):
        oracle.attempt(token)
        save_once(oracle, token, storage=storage)
        oracle.acknowledge(token)
    return oracle


def next_step(oracle, scenario):
    """Token and step of the save that a trial breaks off."""
    token = max(oracle.steps, default=0) + 1
    return token, (2 if scenario == "over" else token)


def save_once(oracle, token, step=None, **how):
    """Save on the oracle's number of ranks, which are processes; raises if it fails."""
    from tests.faults.group import Group

    with Group(
        oracle.world, lambda side: saver(side, oracle, token, step or token, **how)
    ) as group:
        for member in group.finish():
            if member.status != 0 or member.heard("error"):
                raise AssertionError(f"a healthy save failed: {member}")


def saver(side, oracle, token, step, mode="blocking", *, options=QUICK, armed=None, storage=None):
    """A rank's whole life: open, save one step, say so.

    Args:
        side: of the group.
        oracle: where and how to save.
        token: what to save.
        step: as which step.
        mode: of saving.
        options: of the manager.
        armed: context manager that holds while the manager is opened and saves.
        storage: that saves; the real one by default.
    """
    state = fill(empty_state(oracle.size), token, side.rank)
    communicator = side.communicator(options.timeout) if side.world > 1 else None
    options = options_of(mode, options)
    with storage_is(storage), forked_writers(), armed or contextlib.nullcontext():
        manager = CheckpointManager(
            oracle.root, state, keep=oracle.keep, options=options, communicator=communicator
        )
        save(manager, step)
        side.tell("acknowledged", token)
        manager.close()
