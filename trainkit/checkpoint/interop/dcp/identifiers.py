"""Which folder and which step DCP's ``checkpoint_id`` means."""

import os
import re
from dataclasses import dataclass

from trainkit.checkpoint.format.layout import StepFolder
from trainkit.errors import UsageError
from trainkit.storage import refuse_credentials

__all__ = ["Identified", "identify"]

_NUMBER = re.compile(r"(\d{1,18})$")


@dataclass(frozen=True, slots=True)
class Identified:
    """A checkpoint root and what in it is meant: a step, one folder of it, or nothing."""

    url: str
    step: int | None
    folder: StepFolder | None = None


def identify(
    url: str | os.PathLike[str] | None,
    step: int | None,
    checkpoint_id: str | os.PathLike[str] | None,
) -> Identified:
    """Find the root and the step that are meant.

    Args:
        url: the root; None takes what stands before the last name of ``checkpoint_id``.
        step: counts where there is no ``checkpoint_id``.
        checkpoint_id: ends in the number of the step, as ``100`` and ``runs/a/step-100`` do, or
            is the path of a step folder.

    Raises:
        UsageError: no root can be told, ``checkpoint_id`` names no step, or there are credentials
            in one of them.
    """
    for given in (url, checkpoint_id):
        if given is not None:
            refuse_credentials(given)
    if checkpoint_id is None:
        if url is None:
            raise UsageError(
                "neither a checkpoint folder nor a checkpoint_id was given; expected "
                "TrainkitWriter(url, step=100), or checkpoint_id='runs/a/step-100'"
            )
        return _of_root(os.fspath(url), step)
    head, slash, tail = os.fspath(checkpoint_id).rstrip("/").rpartition("/")
    root = os.fspath(url) if url is not None else head or (slash or ".")
    folder = StepFolder.parse(tail)
    if folder is not None:
        return Identified(root, folder.step, folder)
    number = _NUMBER.search(tail)
    if number is None:
        raise UsageError(
            f"checkpoint_id={os.fspath(checkpoint_id)!r} ends in no number; expected the step at "
            f"its end, as in '100' or 'runs/a/step-100'"
        )
    return Identified(root, int(number[1]))


def _of_root(url: str, step: int | None) -> Identified:
    head, slash, tail = url.rstrip("/").rpartition("/")
    folder = StepFolder.parse(tail)
    if folder is None:
        return Identified(url, step)
    if step not in (None, folder.step):
        raise UsageError(f"step={step} and a URL that is the folder of step {folder.step}: {url}")
    return Identified(head or (slash or "."), folder.step, folder)
