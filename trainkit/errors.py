"""The exceptions that trainkit raises, and the exit codes that they become.

    TrainkitError
    ├── UsageError (ValueError)                2   wrong flags or arguments
    ├── DataError (ValueError)                65   damaged or inconsistent input
    │   └── CheckpointDamagedError            65   a committed checkpoint fails its checks
    ├── InputMissingError (FileNotFoundError) 66   a file, folder or URL that is not there
    ├── NoPermissionError (PermissionError)   77   the operating system or the store refuses
    ├── EnvironmentFaultError (RuntimeError)  78   the pod is set up wrongly
    │   ├── TopologyError (ValueError)        78   variables that contradict each other
    │   ├── StrategyError                     78   this strategy cannot do what was asked
    │   └── DependencyError (ImportError)     78   an extra is not installed
    ├── RetryableError (ConnectionError)     138   peers, network or store lost: run me again
    │   ├── DeadlineError (TimeoutError)     138   somebody did not come in time; names who
    │   └── PeerLostError                    138   a rank went away in the middle
    └── Preempted (SystemExit)               143   asked to stop; the checkpoint is saved

Each class also subclasses the builtin that people catch. ``TrainkitError`` itself derives
from ``BaseException`` so that ``Preempted``, which has to pass through a user's
``except Exception``, can still be caught by ``except TrainkitError``.
"""

from enum import IntEnum

__all__ = [
    "CheckpointDamagedError",
    "DataError",
    "DeadlineError",
    "DependencyError",
    "EnvironmentFaultError",
    "ExitCode",
    "InputMissingError",
    "NoPermissionError",
    "PeerLostError",
    "Preempted",
    "RetryableError",
    "StrategyError",
    "TopologyError",
    "TrainkitError",
    "UsageError",
]


class ExitCode(IntEnum):
    """Exit codes on which the restart rules of all operators agree.

    1–127 are permanent and 128 and above retryable under ``restartPolicy: ExitCode``; the
    values between 65 and 78 are those of BSD's sysexits.h.
    """

    DONE = 0
    USAGE = 2
    DATA_INVALID = 65
    INPUT_MISSING = 66
    USER_CODE = 70
    NO_PERMISSION = 77
    ENVIRONMENT = 78
    INTERRUPTED = 130
    RETRYABLE = 138
    PREEMPTED = 143


class TrainkitError(BaseException):
    """Base of all errors of trainkit; ``exit_code`` is what the process ends with."""

    exit_code = ExitCode.USER_CODE


class UsageError(TrainkitError, ValueError):
    """Flags or arguments that cannot be meant."""

    exit_code = ExitCode.USAGE


class DataError(TrainkitError, ValueError):
    """Input that is there but damaged or inconsistent."""

    exit_code = ExitCode.DATA_INVALID


class CheckpointDamagedError(DataError):
    """A committed checkpoint whose bytes do not match its manifest."""


class InputMissingError(TrainkitError, FileNotFoundError):
    """A file, folder or URL that should be there and is not."""

    exit_code = ExitCode.INPUT_MISSING


class NoPermissionError(TrainkitError, PermissionError):
    """The operating system or an object store refuses access."""

    exit_code = ExitCode.NO_PERMISSION


class EnvironmentFaultError(TrainkitError, RuntimeError):
    """The pod or host is set up in a way that cannot work."""

    exit_code = ExitCode.ENVIRONMENT


class TopologyError(EnvironmentFaultError, ValueError):
    """Topology variables that are malformed or contradict each other."""


class StrategyError(EnvironmentFaultError):
    """The chosen strategy cannot do what was asked of it."""


class DependencyError(EnvironmentFaultError, ImportError):
    """An optional dependency is needed and not installed."""


class RetryableError(TrainkitError, ConnectionError):
    """Infrastructure failed; the same job may succeed when it is started again."""

    exit_code = ExitCode.RETRYABLE


class DeadlineError(RetryableError, TimeoutError):
    """A wait ended at its deadline; the message names what and whom it awaited."""


class PeerLostError(RetryableError):
    """A peer went away while this rank was talking to it."""


class Preempted(TrainkitError, SystemExit):
    """The job was asked to stop, and stopped in order; also a ``SystemExit`` with code 143."""

    exit_code = ExitCode.PREEMPTED

    def __init__(self, message: str, *, exit_code: int = ExitCode.PREEMPTED) -> None:
        super().__init__(message)
        self.message = message
        self.code = int(exit_code)

    def __str__(self) -> str:
        return self.message
