"""What can be saved: torch's ``Stateful`` protocol without torch, and three small states."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from trainkit.errors import EnvironmentFaultError, UsageError

__all__ = ["PerRank", "Pickled", "Progress", "Stateful"]

T = TypeVar("T")


@runtime_checkable
class Stateful(Protocol):
    """Anything with ``state_dict`` and ``load_state_dict``.

    The same two methods as ``torch.distributed.checkpoint.stateful.Stateful``, so modules,
    optimizers, schedulers and scalers conform as they are.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a dictionary."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state back that ``state_dict`` returned."""
        ...


@dataclass(slots=True)
class Progress:
    """How far training is: ``epoch`` counts from 0, ``step`` counts optimizer steps done."""

    epoch: int = 0
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"epoch": int, "step": int}``."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take ``epoch`` and ``step`` from a saved state."""
        self.epoch = int(state_dict["epoch"])
        self.step = int(state_dict["step"])


@dataclass(frozen=True, slots=True)
class PerRank(Generic[T]):
    """Marks a state of which every rank has its own, such as random generators.

    A plain entry is taken to be the same on all ranks and is saved once; a ``PerRank`` entry
    is saved by each rank and given back to the rank of the same number.
    """

    value: T


@dataclass(slots=True)
class Pickled(Generic[T]):
    """Any Python object as a state, by ``pickle``: loading it runs code that lies in the file.

    No pickle is written, or read, but for an entry that the program itself has wrapped in this,
    when it saves and when it loads; what a checkpoint says decides nothing. So it is only for
    checkpoints that nobody else can write to. Restoring puts a new object into ``value``, once
    all other entries are known to fit.
    """

    value: T

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"pickle": bytes}``.

        Raises:
            UsageError: the object cannot be pickled.
        """
        try:
            return {"pickle": pickle.dumps(self.value)}
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            kind = type(self.value).__name__
            raise UsageError(f"a Pickled {kind} cannot be pickled: {error}") from None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the object that was pickled.

        Raises:
            EnvironmentFaultError: what was saved was no ``Pickled``, or what it needs is not here.
        """
        data = state_dict.get("pickle")
        if not isinstance(data, bytes):
            raise EnvironmentFaultError(
                f"the run expects a Pickled object, the checkpoint holds {sorted(state_dict)}"
            )
        try:
            self.value = pickle.loads(data)  # noqa: S301 - asked for by name, see above
        except Exception as error:  # whatever the code in it raises
            text = f"a Pickled object cannot be made: {type(error).__name__}: {error}"
            raise EnvironmentFaultError(text) from error
