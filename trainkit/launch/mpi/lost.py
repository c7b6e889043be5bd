"""A host that mpirun lost: Open MPI says so in words, and ends with 255, or even with 0 (seen)."""

import re
from collections.abc import Sequence

__all__ = ["lost_host"]

_LOST = re.compile(r"(?:PRTE|ORTE) has lost communication with a remote daemon")
_DAEMON = re.compile(r"Remote daemon: .* on node (\S+)")


def lost_host(lines: Sequence[str]) -> str:
    """Say which host's daemon went away while the job ran; empty if none did.

    Args:
        lines: what mpirun wrote to standard error, the ranks' lines among it.
    """
    told = [number for number, line in enumerate(lines) if _LOST.search(line)]
    if not told:
        return ""
    found = (_DAEMON.search(line) for line in lines[told[0] :])
    node = next((match[1] for match in found if match), "a host")
    return f"mpirun has lost {node}: its pod, its node or the network to it is gone"
