"""Entries of no framework: ``Stateful`` objects, dictionaries, lists, arrays, tensors, and
numpy's random generators."""

from collections.abc import Mapping
from typing import Any, ClassVar

from trainkit.checkpoint.adapters import arrays, generators
from trainkit.checkpoint.adapters.base import Apply, Document, Saved
from trainkit.errors import EnvironmentFaultError, UsageError
from trainkit.frameworks import loaded, of_object
from trainkit.state import Stateful

__all__ = ["PlainAdapter", "check_restorable", "give_back", "is_weights", "state_of"]


class PlainAdapter:
    """Saves what ``state_dict`` returns, or the value itself, as one document."""

    kind: ClassVar[str] = "value"

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``StateAdapter.capture``."""
        return [Document.of(f"state/{name}", name, state_of(state[name]))]

    def prepare(self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]) -> Apply:
        """See ``StateAdapter.prepare``."""
        return give_back(name, state[name], saved[f"state/{name}"].value())


def state_of(value: Any) -> Any:
    """What is saved of ``value``."""
    if generators.is_generator(value):
        return generators.state_of(value)
    return value.state_dict() if isinstance(value, Stateful) else value


def check_restorable(name: str, value: Any) -> None:
    """Refuse an entry that could be saved and never be given back.

    Raises:
        UsageError: the message names the entry.
    """
    if isinstance(value, (Stateful, dict, list)) or _is_tensor(value):
        return
    if generators.is_generator(value):
        return
    if arrays.is_array(value) and arrays.is_whole_array(value):
        if not arrays.is_writable(value):
            raise UsageError(
                f"the checkpoint entry {name!r} is a read-only numpy array, which no restore can "
                f"fill. Expected one that can be written to, such as a copy of it."
            )
        return
    raise UsageError(
        f"the checkpoint entry {name!r} is a {type(value).__name__}, to which no state can be "
        f"given back. Expected an object with state_dict and load_state_dict, a dict, a list, a "
        f"numpy array or random generator, a tensor, a booster of XGBoost's or what TensorFlow "
        f"tracks (the last two not as PerRank); put single values into a dict or trainkit.Progress."
    )


def is_weights(value: Any) -> bool:
    """Whether ``value`` is an array or a tensor by itself."""
    return _is_tensor(value) or (arrays.is_array(value) and arrays.is_whole_array(value))


def give_back(name: str, target: Any, value: Any) -> Apply:
    """Prepare to write ``value`` into ``target`` itself.

    Raises:
        EnvironmentFaultError: it does not fit.
    """
    if isinstance(target, Stateful):
        return lambda: target.load_state_dict(value)
    if isinstance(target, dict):
        _expect(name, isinstance(value, dict), "a dict", _described(value))

        def fill() -> None:
            target.clear()
            target.update(value)

        return fill
    if isinstance(target, list):
        _expect(name, isinstance(value, list), "a list", _described(value))
        return lambda: target.__setitem__(slice(None), value)
    if generators.is_generator(target):
        return generators.give_back(name, target, value)
    return _give_array_back(name, target, value)


def _give_array_back(name: str, target: Any, value: Any) -> Apply:
    expected, found = _described(target), _described(value)
    if _is_tensor(target):
        from trainkit.checkpoint.adapters.torch import tensors as torch_tensors

        _expect(name, expected == found, expected, found)
        return lambda: torch_tensors.copy_into(target, value)
    _expect(name, expected == found, expected, found)
    return lambda: arrays.copy_into(target, value)


def _described(value: Any) -> str:
    if arrays.is_array(value) or _is_tensor(value):
        kind = "an array" if arrays.is_array(value) else "a tensor"
        # Of numpy's, the name says nothing of the order of bytes, which may differ.
        dtype = value.dtype.name if arrays.is_array(value) else value.dtype
        return f"{kind} of shape {tuple(value.shape)} and type {dtype}"
    return f"a {type(value).__name__}"


def _expect(name: str, fits: bool, expected: str, found: str) -> None:
    if not fits:
        raise EnvironmentFaultError(
            f"{name}: the run expects {expected}, the checkpoint holds {found}. Restore into "
            f"the state that was saved, or start with another checkpoint folder."
        )


def _is_tensor(value: Any) -> bool:
    if not loaded("torch") or of_object(value) != "torch":
        return False
    from trainkit.checkpoint.adapters.torch import tensors as torch_tensors

    return torch_tensors.is_tensor(value)
