"""Writers that are broken on purpose, each in one way: the faults must show it.

They change what a storage does, and not how checkpoints are made, so that they stay what they
are when the making changes.
"""

import contextlib
import os
import pickle
import stat

from trainkit.checkpoint import restoring
from trainkit.checkpoint.format import chunks, manifest
from trainkit.checkpoint.load import reader
from trainkit.checkpoint.save import commit
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import LocalStorage, local


class ManifestFirst(LocalStorage):
    """Writes data files only once the manifest is there."""

    def __init__(self, root):
        super().__init__(root)
        self._held = []

    def write(self, path, parts):
        self._held.append((path, [bytes(part) for part in parts]))
        self.make_folder(os.path.dirname(path))

    def create(self, path, data):
        super().create(path, data)
        if path.endswith("MANIFEST.json"):
            while self._held:
                super().write(*self._held.pop())


class InPlace(LocalStorage):
    """Writes the files of each step over those of the step before, as one that has fixed names
    for its files does."""

    def write(self, path, parts):
        one = self._local(".shared") / path.partition("/")[2].replace("/", "-")
        one.parent.mkdir(exist_ok=True)
        descriptor = os.open(one, os.O_WRONLY | os.O_CREAT, 0o666)
        offset = 0
        for part in parts:
            # In two halves, or a state this small would change at a single moment.
            for half in (part[: len(part) // 2], part[len(part) // 2 :]):
                offset += os.pwrite(descriptor, half, offset)
        os.ftruncate(descriptor, offset)
        os.fsync(descriptor)
        os.close(descriptor)
        self.make_folder(os.path.dirname(path))
        os.link(one, self._local(path))


class NoFlush(LocalStorage):
    """Does not flush files."""

    skips = staticmethod(stat.S_ISREG)

    def write(self, path, parts):
        with self._skipping():
            super().write(path, parts)

    def create(self, path, data):
        with self._skipping():
            super().create(path, data)

    def make_folder(self, path=""):
        with self._skipping():
            super().make_folder(path)

    @contextlib.contextmanager
    def _skipping(self):
        real = {name: getattr(os, name) for name in ("fsync", "fdatasync")}

        def skipping(name):
            return lambda fd: None if self.skips(os.fstat(fd).st_mode) else real[name](fd)

        for name in real:
            setattr(os, name, skipping(name))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)


class NoFolderFlush(NoFlush):
    """Does not flush the folders that name files."""

    skips = staticmethod(stat.S_ISDIR)


class Swallowing(LocalStorage):
    """Loses errors of writing, as a pool of threads does that nobody asks how it ended."""

    def write(self, path, parts):
        with contextlib.suppress(OSError):
            super().write(path, parts)


@contextlib.contextmanager
def unchecked():
    """Readers of this process that compare no checksum of a file."""
    real = chunks.digest
    chunks.digest = lambda data: _Equal()
    try:
        yield
    finally:
        chunks.digest = real


@contextlib.contextmanager
def unfenced():
    """Writers of this process that do not look whether another run has taken over."""
    real = commit.refuse_overtaken
    commit.refuse_overtaken = lambda *_: None
    try:
        yield
    finally:
        commit.refuse_overtaken = real


@contextlib.contextmanager
def torn_is_damage():
    """Restores of this process that take a commit that was cut off for one that was damaged."""
    real = restoring._is_torn
    restoring._is_torn = lambda outcome: False
    try:
        yield
    finally:
        restoring._is_torn = real


class _Equal:
    """Equal to everything."""

    __hash__ = None

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


nothing = contextlib.nullcontext
"""No break."""


@contextlib.contextmanager
def any_path():
    """Readers of this process that follow every path."""
    real = manifest.is_safe_path, local.parts_of
    manifest.is_safe_path = lambda path: True
    local.parts_of = lambda path, root: path.split("/")
    try:
        yield
    finally:
        manifest.is_safe_path, local.parts_of = real


@contextlib.contextmanager
def unpickling():
    """Readers of this process that take pickles for values, too."""
    real = reader.from_json_bytes

    def either(data):
        try:
            return real(data)
        except CheckpointDamagedError:
            return pickle.loads(data)

    reader.from_json_bytes = either
    try:
        yield
    finally:
        reader.from_json_bytes = real


@contextlib.contextmanager
def replaced(owner, name, value):
    """Have another value in the place of an attribute."""
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, real)


def oldest_restored():
    """Restores of this process that take the oldest checkpoint."""
    real = restoring.Restorer._listed
    return replaced(restoring.Restorer, "_listed", lambda self: real(self)[-1:])
