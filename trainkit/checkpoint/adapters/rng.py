"""Random generators of this process: Python's, numpy's, torch's."""

import random
import sys
from typing import Any

from trainkit.frameworks import loaded

__all__ = ["capture", "give_back"]


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


def give_back(states: dict[str, Any]) -> None:
    """Set the generators to saved states; those that this process does not use are left."""
    random.setstate(states["python"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in states:
        numpy.random.set_state(states["numpy"])
    if loaded("torch"):
        from trainkit.checkpoint.adapters.torch import generators

        generators.give_back(states)
