"""Objects that a restore has overwritten in part, which nobody can want to be saved."""

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainkit.errors import CheckpointDamagedError

__all__ = ["mark_torn", "mend", "refuse_torn"]

_torn: "weakref.WeakSet[Any]" = weakref.WeakSet()


def mark_torn(values: Iterable[Any]) -> None:
    """Say that these modules are being overwritten; they stay marked until ``mend``."""
    for value in values:
        _torn.update(_modules(value))


def mend(values: Iterable[Any]) -> None:
    """Say that these objects were restored."""
    if _torn:
        for value in values:
            _torn.difference_update(_modules(value))


def refuse_torn(state: Mapping[str, Any], what: str) -> None:
    """Refuse to go on with a state of no step.

    Args:
        state: of the run.
        what: was to be done.

    Raises:
        CheckpointDamagedError: a restore has failed that had begun to change the state, whichever
            manager's it was.
    """
    if not _torn:
        return
    found = [name for name, value in state.items() if any(m in _torn for m in _modules(value))]
    if found:
        raise CheckpointDamagedError(
            f"{what}: a restore has failed that had overwritten some of {', '.join(found)} "
            f"already, so that the state is of no step. Restore a checkpoint that is whole, or "
            f"start the process again."
        )


def _modules(value: Any) -> Iterator[Any]:
    """A torch module and all in it, since it may be wrapped in another one; of others nothing."""
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(value, torch.nn.Module)
    return iter(value.modules()) if is_module else iter(())
