"""A rank whose launcher is killed must not go on training alone."""

import logging

from trainkit.processes import kernel

__all__ = ["die_with_parent"]

log = logging.getLogger(__name__)


def die_with_parent() -> None:
    """Have the kernel end this process when its parent dies.

    torchrun gives its ranks sessions of their own, so a killed agent leaves them running, with
    their GPUs and ports.
    """
    try:
        kernel.die_with_parent()
    except OSError as reason:
        log.debug("%s", reason)
