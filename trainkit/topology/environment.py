"""What each platform must be able to answer."""

from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

__all__ = ["ClusterEnvironment"]


class ClusterEnvironment(Protocol):
    """One platform: an operator, a launcher or a scheduler that describes itself in variables.

    Both methods are pure functions of the ``Sight``: they read no file, variable or device
    but through it. An implementation has no state and takes no arguments to be made.
    """

    name: str
    """What ``Topology.platform`` and TRAINKIT_PLATFORM say."""

    def detect(self, sight: Sight) -> bool:
        """Whether this platform made what is seen.

        Cheap, and never raises: a value that cannot be read is the business of ``topology``.
        Half a set of variables is claimed as well, so that it ends in an error and not in a
        process that trains alone.
        """
        ...

    def topology(self, sight: Sight) -> Topology:
        """Where this process stands.

        Also called without ``detect`` where TRAINKIT_PLATFORM names this platform.

        Raises:
            TopologyError: variables are missing, malformed or contradict each other.
        """
        ...
