"""Numbers of saving and restoring that seldom need a change."""

from dataclasses import dataclass

from trainkit.errors import UsageError

__all__ = ["CheckpointOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """Numbers that seldom need a change."""

    background: bool = True
    """Whether saves are written beside training, by a process that is kept for it. Where the
    storage lives in this process alone, as ``memory://`` does, they are not."""
    when_busy: str = "wait"
    """What ``step`` does where a save is due and the one before is still being written:
    ``wait`` for it, or ``skip`` the new one."""
    timeout: float = 1800.0
    """Seconds that a save may take until it is committed, and a restore until it has been read,
    the slowest rank's included."""
    exit_timeout: float = 60.0
    """Seconds for which a process that ends without ``close``, or by an error, waits for the save
    that is under way; after an error at most five times as long as the last saves have taken, and
    ten seconds, since a part of it may be that of a rank that was lost."""
    attempts: int = 3
    """How often a save is tried while the storage answers with I/O errors."""
    pause: float = 2.0
    """Seconds before the second attempt; doubled before each further one."""
    upload_every: int = 1
    """With a local tier: every how many saves also go to the folder of checkpoints. The others
    stay on the nodes. The last one of a run does in any case, and so does one of a stop."""
    copy_unchanged: bool = True
    """Whether S3 is asked to copy what did not change in a large file since the last save, in
    place of sending it again. Every eighth save is sent as a whole in any case."""
    visible_within: float = 15.0
    """Seconds that a network file system may take to show one rank what another wrote."""
    lease: float = 60.0
    """Seconds of silence after which another run that has the folder is taken for dead, where
    nothing else tells. On the same host, and in the same container started again, the process
    table tells at once."""
    renewal: float = 15.0
    """Seconds between two signs of life of this run."""
    patience: float = 30.0
    """Seconds that another run, which has the folder and is alive, is given to end before this
    one is refused: a pod may start while the one that it replaces still saves."""
    read_only: bool = False
    """Only restore and look: no claim, no lease, and nothing is ever written. For an evaluator
    beside a run."""

    def __post_init__(self) -> None:
        if not 0 < 2 * self.renewal <= self.lease:
            raise UsageError(
                f"lease={self.lease}, renewal={self.renewal}: expected a lease of at least two "
                f"renewals, and more than 0 seconds"
            )
        if self.upload_every < 1:
            raise UsageError(f"upload_every={self.upload_every}: expected 1 or more saves")
        if self.when_busy not in ("wait", "skip"):
            raise UsageError(f"when_busy={self.when_busy!r}: expected 'wait' or 'skip'")
