"""Object storages that are broken on purpose, each in one way: scripts must show it.

As in `broken`, they change what a storage does and not how checkpoints are made.
"""

import contextlib

from trainkit.errors import TrainkitError
from trainkit.storage import ObjectStorage


class Swallowing(ObjectStorage):
    """Loses errors of sending, as a pool of threads does that nobody asks how it ended."""

    def create(self, path, data):
        with contextlib.suppress(OSError):
            super().create(path, data)


class NeverLooking(ObjectStorage):
    """Takes each error at its word, and does not look whether the object is there all the same."""

    def create(self, path, data):
        if not path.startswith("step-"):
            super().create(path, data)
            return
        with self._telling(self._key(path)):
            self._fs.pipe_file(self._key(path), bytes(data), mode="create")


class Believing(ObjectStorage):
    """Takes "a condition does not hold" for "it is there", and does not look."""

    def create(self, path, data):
        try:
            super().create(path, data)
        except OSError as error:
            if "pre-conditions" not in str(error) and "onflict" not in str(error):
                raise


class Careless(ObjectStorage):
    """Takes what it has for what it asked for, when reading fails or ends early."""

    def read_into(self, path, buffer, offset=0):
        with contextlib.suppress(OSError, TrainkitError):
            key = self._key(path)
            data = self._fs.cat_file(key, start=offset, end=offset + len(buffer))
            buffer[: len(data)] = data
        return len(buffer)


def remove_by_listing(storage, leftover):
    """Remove what a listing shows to be left, without another look: `remove_leftover`, broken."""
    storage.delete(leftover.path)
    return True


def remove_nothing(storage, leftover):
    """Leave all as it is."""
    return False
