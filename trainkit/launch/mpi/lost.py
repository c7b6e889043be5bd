"""A host that Open MPI lost: mpirun ends with 255 then, or even with 0 (seen)."""

import re
from collections.abc import Sequence

__all__ = ["lost_host"]

_UNKNOWN = 255
"""Of mpirun that could not go on; a rank's own 255 it tells in words."""

_LOST = re.compile(r"(?:PRTE|ORTE) has lost communication with a remote daemon")
_NAMES = (
    re.compile(r"Remote daemon: .* on node (\S+)"),
    re.compile(r"Connection to (\S+) closed by remote host"),  # ssh's words
)
_OF_A_RANK = re.compile(rf"Exit code:\s+{_UNKNOWN}\b")


def lost_host(code: int, lines: Sequence[str]) -> str:
    """Say which host's daemon went away while the job ran; empty if none did.

    Args:
        code: that mpirun ended with.
        lines: what it wrote to standard error, the ranks' lines among it.
    """
    if code not in (0, _UNKNOWN):
        return ""
    # What mpirun knows of a daemon whose ssh has ended it may tell on standard output, unseen.
    of_no_rank = code == _UNKNOWN and not any(_OF_A_RANK.search(line) for line in lines)
    if not of_no_rank and not any(_LOST.search(line) for line in lines):
        return ""
    found = (name.search(line) for name in _NAMES for line in lines)
    host = next((match[1] for match in found if match), "a host")
    return f"mpirun has lost {host}: its pod, its node or the network to it is gone"
