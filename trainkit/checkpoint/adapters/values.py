"""Values as JSON and tensors, without pickle: what a document of a checkpoint holds.

JSON stands for itself. What JSON lacks becomes an object with the key ``$kind``: tuples, bytes,
dictionaries with other keys than strings, floats that are no numbers, and the place of a
tensor or array, whose bytes lie in the safetensors file of the same name.
"""

import base64
import binascii
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from trainkit.checkpoint.adapters import arrays
from trainkit.checkpoint.format.tensors import METADATA, ReadTensor, TensorSource
from trainkit.errors import CheckpointDamagedError, UsageError
from trainkit.frameworks import loaded
from trainkit.storage import Bytes

__all__ = ["Encoder", "decode", "from_json_bytes", "to_json_bytes"]

_KIND = "$kind"
_MAX_DEPTH = 100
_DICTS: dict[type, str] = {dict: "dict", OrderedDict: "ordered_dict", Counter: "counter"}


class Encoder:
    """Turns one value into JSON, and collects the tensors in it."""

    def __init__(self, name: str) -> None:
        """Begin a document.

        Args:
            name: of the entry; errors name the place of a value as a path that begins with it.
        """
        self._name = name
        self.tensors: dict[str, TensorSource] = {}

    def encode(self, value: Any) -> Any:
        """The JSON for ``value``.

        Raises:
            UsageError: something in it cannot be saved; the message names its place.
        """
        return self._encode(value, ())

    def _encode(self, value: Any, path: tuple[str, ...]) -> Any:
        cls = type(value)
        if value is None or cls in (bool, int, str):
            return value
        if cls is float:
            return value if math.isfinite(value) else {_KIND: "float", "value": repr(value)}
        if len(path) > _MAX_DEPTH:
            raise UsageError(f"{self._where(path[:4])}… is nested too deeply, or holds itself")
        if cls is list:
            return self._items(value, path)
        if cls in _DICTS:
            return self._dict(value, path)
        if cls is tuple or (cls.__name__ == "Size" and isinstance(value, tuple)):  # torch.Size
            return {_KIND: "tuple", "items": self._items(value, path)}
        if cls in (bytes, bytearray):
            text = base64.b64encode(value).decode()
            return {_KIND: cls.__name__, "base64": text}
        return self._tensor(value, path)

    def _items(self, values: Any, path: tuple[str, ...]) -> list[Any]:
        return [self._encode(item, (*path, f"[{i}]")) for i, item in enumerate(values)]

    def _dict(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        kind = _DICTS[type(value)]
        if kind == "dict" and all(type(key) is str and key != _KIND for key in value):
            return {key: self._encode(item, (*path, f".{key}")) for key, item in value.items()}
        items = [
            [self._key(key, path), self._encode(item, (*path, f"[{key!r}]"))]
            for key, item in value.items()
        ]
        return {_KIND: kind, "items": items}

    def _key(self, key: Any, path: tuple[str, ...]) -> Any:
        if key is None or type(key) in (bool, int, float, str, bytes, tuple):
            return self._encode(key, (*path, f".<key {key!r}>"))
        raise UsageError(
            f"{self._where(path)} has the key {key!r}, a {_type_name(key)}. Keys that can be "
            f"saved are strings, numbers, booleans, None, bytes, and tuples of these."
        )

    def _tensor(self, value: Any, path: tuple[str, ...]) -> Any:
        where = self._where(path)
        if isinstance(value, TensorSource):  # of another checkpoint, not read yet
            return {_KIND: "tensor", "key": self._add(value, path)}
        if arrays.is_array(value):
            kind = "array" if arrays.is_whole_array(value) else "scalar"
            return {_KIND: kind, "key": self._add(arrays.source(value, where), path)}
        if loaded("torch"):
            from trainkit.checkpoint.adapters.torch import tensors as torch_tensors

            if torch_tensors.is_tensor(value):
                return {
                    _KIND: "tensor",
                    "key": self._add(torch_tensors.source(value, where), path),
                }
        raise UsageError(
            f"{where} is a {_type_name(value)}, which a checkpoint cannot hold. It holds JSON "
            f"values, tuples, bytes, numpy arrays and torch tensors: leave it out of the state "
            f"dict, turn it into these, or give it an entry of its own as trainkit.Pickled(x)."
        )

    def _add(self, source: TensorSource, path: tuple[str, ...]) -> str:
        plain = "".join(path).removeprefix(".") or self._name
        key, count = plain, 1
        while key in self.tensors or key == METADATA:  # {"a.b": x} beside {"a": {"b": y}}
            count += 1
            key = f"{plain}#{count}"
        self.tensors[key] = source
        return key

    def _where(self, path: tuple[str, ...]) -> str:
        return self._name + "".join(path)


def decode(value: Any, tensors: Mapping[str, ReadTensor]) -> Any:
    """The value that an ``Encoder`` turned into JSON and tensors.

    Raises:
        CheckpointDamagedError: the JSON is not what an encoder writes.
        DependencyError: it holds arrays or tensors of a library that is not installed.
    """
    try:
        return _decode(value, tensors)
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        if isinstance(error, CheckpointDamagedError):
            raise
        raise CheckpointDamagedError(f"a value that nobody saved like this: {error!r}") from None


def _decode(value: Any, tensors: Mapping[str, ReadTensor]) -> Any:
    if isinstance(value, list):
        return _decode_list(value, tensors)
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: _decode(item, tensors) for key, item in value.items()}
    return _KINDS[value[_KIND]](value, tensors)


def _decode_list(value: list[Any], tensors: Mapping[str, ReadTensor]) -> list[Any]:
    # Most are of numbers alone, such as the 625 of a random generator's state.
    if all(map(_NUMBERS.__contains__, map(type, value))):
        return value
    return [_decode(item, tensors) for item in value]


def _decode_pairs(value: Any, tensors: Mapping[str, ReadTensor]) -> list[tuple[Any, Any]]:
    return [(_decode(key, tensors), _decode(item, tensors)) for key, item in value["items"]]


def _decode_tensor(value: Any, tensors: Mapping[str, Any]) -> Any:
    found = tensors[value["key"]]  # torch is not loaded for one that is not there
    if isinstance(found, TensorSource):  # of a checkpoint that goes to another tool, not read yet
        return found
    from trainkit.checkpoint.adapters.torch import tensors as torch_tensors

    return torch_tensors.restored(found).clone()


_NUMBERS = {int, float}

_KINDS: dict[str, Callable[[Any, Mapping[str, ReadTensor]], Any]] = {
    "tuple": lambda value, tensors: tuple(_decode_list(value["items"], tensors)),
    "dict": lambda value, tensors: dict(_decode_pairs(value, tensors)),
    "ordered_dict": lambda value, tensors: OrderedDict(_decode_pairs(value, tensors)),
    "counter": lambda value, tensors: Counter(dict(_decode_pairs(value, tensors))),
    "float": lambda value, tensors: float(value["value"]),
    "bytes": lambda value, tensors: base64.b64decode(value["base64"], validate=True),
    "bytearray": lambda value, tensors: bytearray(base64.b64decode(value["base64"], validate=True)),
    "array": lambda value, tensors: arrays.restored(tensors[value["key"]]),
    "scalar": lambda value, tensors: arrays.restored(tensors[value["key"]])[()],
    "tensor": _decode_tensor,
}


def to_json_bytes(value: Any) -> bytes:
    """JSON as it lies on disk."""
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def from_json_bytes(data: Bytes) -> Any:
    """JSON from disk.

    Raises:
        CheckpointDamagedError: it is no JSON.
    """
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise CheckpointDamagedError(f"no JSON: {error}") from None


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
