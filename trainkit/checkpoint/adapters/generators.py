"""numpy's own random generators, as entries of the state. numpy is never required."""

import sys
from typing import Any

from trainkit.checkpoint.adapters.base import Apply
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

__all__ = ["give_back", "is_generator", "state_of"]


def is_generator(value: Any) -> bool:
    """Whether ``value`` is a ``numpy.random.Generator``, or one of the older or inner kinds."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    random = numpy.random
    return isinstance(value, (random.Generator, random.RandomState, random.BitGenerator))


def state_of(value: Any) -> dict[str, Any]:
    """What is saved of a generator."""
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.random.RandomState):  # it has half a pair of normals besides
        legacy: dict[str, Any] = value.get_state(legacy=False)
        return legacy
    state: dict[str, Any] = _inner(value).state
    return state


def give_back(name: str, target: Any, state: Any) -> Apply:
    """Prepare to set ``target`` to a saved state.

    Raises:
        EnvironmentFaultError: it was saved of another kind of generator.
        CheckpointDamagedError: it is no such state.
    """
    numpy = sys.modules["numpy"]
    kind = type(_inner(target))
    found = state.get("bit_generator") if isinstance(state, dict) else type(state).__name__
    if found != kind.__name__:
        raise EnvironmentFaultError(
            f"{name}: the run's random generator is a {kind.__name__}, the checkpoint holds the "
            f"state of a {found}. Restore into the kind that was saved."
        )
    legacy = isinstance(target, numpy.random.RandomState)
    try:
        if legacy:
            numpy.random.RandomState(kind(0)).set_state(state)
        else:
            kind(0).state = state
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointDamagedError(f"{name}: no state of a {kind.__name__}: {error!r}") from None

    def apply() -> None:
        if legacy:
            target.set_state(state)
        else:
            _inner(target).state = state

    return apply


def _inner(value: Any) -> Any:
    """The generator of bits."""
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.random.RandomState):
        return value._bit_generator
    return value.bit_generator if isinstance(value, numpy.random.Generator) else value
