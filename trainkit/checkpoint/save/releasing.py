"""Giving a lease back: by this process, or at its end by another one that lives a moment longer."""

import json
import os
import subprocess
import sys

from trainkit.errors import InputMissingError, RetryableError
from trainkit.storage import ObjectStorage, Storage, open_storage

__all__ = ["has_to_be_another", "release", "release_from_another"]

_RELEASE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from trainkit.checkpoint.save.releasing import main
main(*sys.argv[2:])
"""


def has_to_be_another(storage: Storage) -> bool:
    """Whether a process that is ending cannot reach ``storage`` any more, but another one can.

    The clients of object stores work with threads and event loops, and Python has ended all of
    these when it calls what was registered for the exit of the process.
    """
    return isinstance(storage, ObjectStorage) and storage.reopenable


def release(storage: Storage, released: str, sign: str) -> None:
    """Say that a root is left.

    Args:
        storage: of the root.
        released: path of the object that says so.
        sign: path of the last sign of life; empty if there was none.

    Raises:
        OSError: it cannot be said.
    """
    try:
        storage.create(released, b"")
    except (FileExistsError, InputMissingError):
        return  # said before, or nothing is left to be released
    if sign:
        storage.delete(sign)


def release_from_another(url: str, released: str, sign: str, timeout: float) -> None:
    """Have another process do so, and wait for it.

    Args:
        url: of the root.
        released: as for ``release``.
        sign: as for ``release``.
        timeout: seconds.

    Raises:
        OSError: it could not be started, or did not end well.
        RetryableError: it was not done in time.
    """
    path = json.dumps([os.path.abspath(entry) for entry in sys.path])
    command = [sys.executable, "-P", "-c", _RELEASE, path, url, released, sign]
    try:
        done = subprocess.run(  # noqa: S603 - this very interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            start_new_session=True,  # Ctrl-C is for the one that waits here
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RetryableError(f"not done within {timeout:.0f} s") from None
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise OSError(text.rpartition("\n")[2] or f"exit code {done.returncode}")


def main(url: str, released: str, sign: str) -> None:
    """What the other process does; what goes wrong is the last line on stderr."""
    try:
        release(open_storage(url), released, sign)
    except Exception as error:
        print(error, file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    # Not a return: clients of object stores are slow to end, and the one that waits is, too.
    os._exit(0)
