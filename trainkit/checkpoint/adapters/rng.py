"""Random generators of this process: Python's, numpy's, torch's."""

import random
import sys
from typing import Any

from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError
from trainkit.frameworks import loaded

__all__ = ["capture", "check", "give_back"]


def capture() -> dict[str, Any]:
    """States of the global generators that this process uses."""
    states: dict[str, Any] = {"python": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states["numpy"] = numpy.random.get_state(legacy=False)
    if loaded("torch"):
        from trainkit.checkpoint.adapters.torch import generators

        states.update(generators.capture())
    return states


def check(states: Any) -> None:
    """Try saved states on other generators, so that ``give_back`` will not fail by half.

    Raises:
        CheckpointDamagedError: they are not what ``capture`` returns.
        EnvironmentFaultError: numpy's generator is of another kind in this process.
    """
    try:
        random.Random().setstate(states["python"])  # noqa: S311 - it draws nothing
        numpy = sys.modules.get("numpy")
        if numpy is not None and "numpy" in states:
            kind = type(numpy.random.get_bit_generator())
            found = states["numpy"]["bit_generator"]
            if found != kind.__name__:
                raise EnvironmentFaultError(
                    f"numpy's random generator: the run has {kind.__name__}, the checkpoint holds "
                    f"the state of {found}. Set the one that was saved before restoring."
                )
            numpy.random.RandomState(kind(0)).set_state(states["numpy"])
        if loaded("torch"):
            from trainkit.checkpoint.adapters.torch import generators

            generators.check(states)
    except EnvironmentFaultError:
        raise
    except Exception as error:  # each generator has errors of its own for a state that is none
        raise CheckpointDamagedError(f"no states of random generators: {error!r}") from None


def give_back(states: dict[str, Any]) -> None:
    """Set the generators to saved states; those that this process does not use are left."""
    random.setstate(states["python"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in states:
        numpy.random.set_state(states["numpy"])
    if loaded("torch"):
        from trainkit.checkpoint.adapters.torch import generators

        generators.give_back(states)
