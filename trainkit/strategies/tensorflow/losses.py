"""What an error of TensorFlow's says about other processes of the job."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from trainkit.errors import PeerLostError, TrainkitError

__all__ = ["first_line", "is_loss", "lost_peer", "lost_tasks", "peer_losses", "unwrapped"]

_GONE = (tf.errors.UnavailableError, tf.errors.AbortedError)
_ELSEWHERE = ("GrpcRemote", "RPC to Peer", "Socket closed", "onnection reset", "failed to connect")
"""Parts of messages of other classes of errors, whose cause is a connection that broke."""
_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")


@contextmanager
def peer_losses(what: str) -> Iterator[None]:
    """Raise ``PeerLostError`` in place of an error of TensorFlow's that tells of a lost process.

    Args:
        what: was done meanwhile, as it ends the sentence "… was lost in …".
    """
    try:
        yield
    except tf.errors.OpError as error:
        lost = lost_peer(error, what)
        if lost is None:
            raise
        raise lost from None


def lost_peer(error: BaseException, what: str) -> PeerLostError | None:
    """What to say of ``error`` if it tells of a lost process, else None."""
    if not isinstance(error, tf.errors.OpError) or not is_loss(error):
        return None
    return PeerLostError(
        f"{', '.join(lost_tasks(error)) or 'another process'} was lost in {what}: "
        f"{first_line(error)}. Look at its log for the first error; started again, the job goes "
        f"on from its last checkpoint."
    )


def is_loss(error: tf.errors.OpError) -> bool:
    """Whether ``error`` is about a process or a connection that is gone."""
    text = str(error.message)
    return isinstance(error, _GONE) or any(words in text for words in _ELSEWHERE)


def lost_tasks(error: BaseException) -> list[str]:
    """The tasks that a message of TensorFlow's names, parameter servers first."""
    found = {f"{job} {index}" for job, index in _TASK.findall(str(error)) if job != "chief"}
    return sorted(found, key=lambda task: (not task.startswith("ps"), task))


def first_line(error: tf.errors.OpError) -> str:
    """What an error of TensorFlow's says, without what surrounds it."""
    lines = [line.strip() for line in str(error.message).splitlines() if line.strip()] or [""]
    # An error within a function begins with the way there, in many lines.
    text = next((line for line in lines if any(words in line for words in _ELSEWHERE)), lines[0])
    return text if len(text) < 300 else f"{text[:300]}…"


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the error that the coordinator, or a trace, has wrapped in one of TensorFlow's own."""
    try:
        yield
    except Exception as error:
        inner = getattr(error, "original_exception", None)
        traced: BaseException | None = error
        while traced is not None and type(traced).__module__.startswith("tensorflow."):
            traced = traced.__context__  # a function within a function is wrapped twice
        if inner is None and isinstance(traced, TrainkitError):
            inner = traced
        if isinstance(inner, BaseException):
            raise inner from None
        raise
