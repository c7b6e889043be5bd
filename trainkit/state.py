"""What can be saved: torch's ``Stateful`` protocol without torch, and two small states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

__all__ = ["PerRank", "Progress", "Stateful"]

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
