"""Saying at the start who this process is."""

import logging

from trainkit.lifecycle.hints import small_shared_memory
from trainkit.redaction import without_secrets
from trainkit.topology import Topology

__all__ = ["log_to_stderr", "log_topology"]

log = logging.getLogger("trainkit")


def log_topology(topology: Topology, *, by_all: bool = False) -> None:
    """Say in one line who we are, and in one each what deserves a warning.

    Args:
        topology: of this process.
        by_all: also where another rank says it already; each launcher speaks for its pod.
    """
    log_to_stderr()
    if by_all or topology.rank in (0, None) or topology.starts_ranks:
        log.info("%s", without_secrets(topology.summary()))
        for note in topology.notes:
            log.warning("%s", without_secrets(note))
        small = small_shared_memory() if by_all or topology.starts_ranks else ""
        if small:
            log.warning("%s", small)
    for left in topology.unused:
        log.debug("%s", left)


def log_to_stderr() -> None:
    """Show our own log lines where the program has not set up logging itself."""
    if logging.getLogger().handlers or log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("trainkit: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
