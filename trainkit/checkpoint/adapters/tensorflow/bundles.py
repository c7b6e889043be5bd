"""TensorFlow's own checkpoint files, written to a local folder and read from one."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.adapters.scratch import Scratch, opened
from trainkit.checkpoint.format.layout import TENSORFLOW
from trainkit.errors import RetryableError, UsageError

__all__ = ["PREFIX", "options", "root_of", "translated", "write"]

PREFIX = "ckpt"
"""What the names of the files begin with."""

_TAKEN = {name for name in dir(tf.train.Checkpoint) if not name.startswith("_")} | {"root", "self"}


def root_of(entries: Mapping[str, Any]) -> Any:
    """One ``tf.train.Checkpoint`` of all entries.

    All together, since the state of some optimizers is found by the variables that it is for.

    Raises:
        UsageError: an entry has a name that ``tf.train.Checkpoint`` uses itself.
    """
    taken = sorted(_TAKEN.intersection(entries))
    if taken:
        raise UsageError(
            f"what TensorFlow tracks cannot be the checkpoint entry {taken[0]!r}, a name of "
            f"tf.train.Checkpoint's own: name it otherwise"
        )
    return tf.train.Checkpoint(**entries)


def options() -> Any:
    """Files are read and written by this process, wherever the variables are.

    By itself TensorFlow has each parameter server write its own variables to its own disk, and
    then looks for the files on this one's.
    """
    with tf.device(None), tf.device("CPU:0"):
        here = tf.constant(0).device
    return tf.train.CheckpointOptions(experimental_io_device=here)


def write(entries: Mapping[str, Any]) -> list[Document]:
    """The files of a checkpoint of ``entries``, as documents that can be read until dropped.

    Raises:
        UsageError: inside a ``tf.function`` or a replica, where no values can be had.
        OSError: the local folder is full.
        RetryableError: a process that holds variables is lost.
    """
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if in_replica or not tf.executing_eagerly():
        raise UsageError(
            "a checkpoint of what TensorFlow tracks can only be saved outside of tf.function and "
            "strategy.run: call step() and save() in the plain Python loop"
        )
    root = root_of(entries)
    scratch = Scratch()
    try:
        root.write(str(scratch.path / PREFIX), options=options())
        files = sorted(scratch.path.glob(f"{PREFIX}.*"))
        return [Document(f"{TENSORFLOW}/{file.name}", None, raw=opened(file)) for file in files]
    except tf.errors.OpError as error:
        raise translated(error, scratch.path) from None
    finally:
        scratch.remove()


def translated(error: Any, folder: Path) -> BaseException:
    """What to raise for an error of TensorFlow's while it wrote to or read from ``folder``."""
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    if isinstance(error, lost):
        return RetryableError(
            f"a process that holds variables of TensorFlow's is lost: {_first_line(error)}. "
            f"Start the job again; it goes on from the last checkpoint."
        )
    full = isinstance(error, tf.errors.ResourceExhaustedError)
    return OSError(
        errno.ENOSPC if full else errno.EIO,
        f"TensorFlow's checkpoint passes through the local folder {folder.parent}, which failed: "
        f"{_first_line(error)}. TMPDIR names another one.",
    )


def _first_line(error: Any) -> str:
    return str(error.message).strip().partition("\n")[0]
