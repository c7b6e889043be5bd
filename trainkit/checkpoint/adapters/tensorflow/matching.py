"""Whether a checkpoint of TensorFlow's fits the objects of a run, found before any is changed.

A checkpoint is a graph of objects that are joined by the names of attributes, as is the run's
state. TensorFlow restores what it meets on the same ways in both, and is silent about the rest.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

__all__ = ["Fit", "check", "variables_of"]

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
_COUNTER = "save_counter"
"""Of ``tf.train.Checkpoint.save``, which a run may call for itself: made at the first call."""

_HINT = (
    "Restore into the state that was saved, or start with another checkpoint folder; nothing was "
    "changed."
)


@dataclass(frozen=True, slots=True)
class Fit:
    """What is left to be said of a checkpoint that fits."""

    unbuilt: list[Any]
    """Objects of the run that are not built yet, and take values from it when they are."""
    counters: list[Any]
    """Checkpoints of the run's own that have no counter of saves yet, and one in the files."""
    uncounted: bool
    """Whether the run has such a counter, and the files have not."""


def check(entries: Mapping[str, Any], prefix: str) -> Fit:
    """Compare variables by name, shape and element type.

    Args:
        entries: of the run, by name.
        prefix: of the checkpoint's files.

    Raises:
        EnvironmentFaultError: they do not fit; the message names the first difference.
        CheckpointDamagedError: the files are not what TensorFlow writes.
    """
    saved = _Saved.open(prefix)
    match = _Match(saved)
    match.walk(entries)
    _check_values(saved, match)
    missing = list(_missing(match))
    surplus, unbuilt = _surplus(saved, match)
    if missing or surplus:
        raise EnvironmentFaultError(
            f"the checkpoint is of another state of TensorFlow's. In the run and not in the "
            f"checkpoint: {_some(missing)}; in the checkpoint and not in the run: "
            f"{_some(surplus)}. What is built when it is first called has to be called, or built, "
            f"before. {_HINT}"
        )
    uncounted = any(_is_counter(path) for path, _ in match.alone)
    return Fit(unbuilt, list(_without_counter(saved, match)), uncounted)


def variables_of(value: Any) -> Iterator[Any]:
    """All variables that ``value`` holds."""
    for item in tf.train.TrackableView(value).descendants():
        if _is_variable(item):
            yield item


@dataclass(frozen=True, slots=True)
class _Saved:
    """A checkpoint's graph, and the shape and type of each value."""

    nodes: Any
    shapes: Mapping[str, list[int]]
    dtypes: Mapping[str, Any]

    @classmethod
    def open(cls, prefix: str) -> "_Saved":
        try:
            reader = tf.train.load_checkpoint(prefix)
            graph = TrackableObjectGraph()
            graph.ParseFromString(reader.get_tensor(_GRAPH))
            shapes = reader.get_variable_to_shape_map()
            return cls(graph.nodes, shapes, reader.get_variable_to_dtype_map())
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            raise CheckpointDamagedError(f"no checkpoint of TensorFlow 2: {error}") from None

    def below(self, node: int) -> Iterator[tuple[str, int]]:
        """Names and numbers of a node's children."""
        for child in self.nodes[node].children:
            yield child.local_name, child.node_id


@dataclass(slots=True)
class _Match:
    """What of a run's objects is met in a checkpoint, and what is not."""

    saved: _Saved
    found: dict[int, Any] = field(default_factory=dict)
    """The run's object by the number of the node."""
    paths: dict[int, str] = field(default_factory=dict)
    alone: list[tuple[str, Any]] = field(default_factory=list)
    """The run's objects that no node stands for on this way, with that way."""

    def walk(self, entries: Mapping[str, Any]) -> None:
        """Begin with the entries, and go all ways that both have."""
        queue: deque[tuple[int, str, Any]] = deque([(0, "", None)])
        while queue:
            node, path, item = queue.popleft()
            own = entries if item is None else tf.train.TrackableView.children(item)
            there = dict(self.saved.below(node))
            for name, child in own.items():
                where = f"{path}.{name}" if path else name
                if name not in there:
                    self.alone.append((where, child))
                elif there[name] not in self.found:
                    self.found[there[name]] = child
                    self.paths[there[name]] = where
                    queue.append((there[name], where, child))


def _check_values(saved: _Saved, match: _Match) -> None:
    for node, item in match.found.items():
        if not _is_variable(item):
            continue
        key = next((a.checkpoint_key for a in saved.nodes[node].attributes if a.name == _VALUE), "")
        if key not in saved.shapes:
            continue
        expected, found = (
            _described(item.dtype, item.shape),
            _described(saved.dtypes[key], saved.shapes[key]),
        )
        if expected != found:
            raise EnvironmentFaultError(
                f"{match.paths[node]} ({_name(item)}): the run expects {expected}, the checkpoint "
                f"holds {found}. {_HINT}"
            )


def _missing(match: _Match) -> Iterator[str]:
    """Variables of the run for which the checkpoint has no value."""
    seen = {id(item) for item in match.found.values()}
    for path, item in match.alone:
        if _is_counter(path) or id(item) in seen:
            continue
        for part in tf.train.TrackableView(item).descendants():
            if _is_variable(part) and id(part) not in seen:
                seen.add(id(part))
                yield f"{path} ({_name(part)})"


def _surplus(saved: _Saved, match: _Match) -> tuple[list[str], list[Any]]:
    """Values for which the run has no variable; and objects that have them once they are built."""
    below = {
        node: {other for other, _ in _reached(saved, [node], {})}
        for node, item in match.found.items()
        if getattr(item, "built", True) is False
    }
    awaited = set().union(*below.values())
    # Made together with the restore, or later, beside the variable that it is for.
    slots = {
        slot.slot_variable_node_id
        for node in match.found
        for slot in saved.nodes[node].slot_variables
    }
    surplus, waiting = [], set()
    for node, path in _reached(saved, match.found, match.paths):
        if node in match.found or not saved.nodes[node].attributes or node in slots:
            continue
        if node in awaited:
            waiting.add(node)
        elif not _is_counter(path):
            names = [a.full_name for a in saved.nodes[node].attributes if a.full_name]
            surplus.append(f"{path} ({names[0]})" if names else path)
    unbuilt = [match.found[node] for node, others in below.items() if others & waiting]
    return surplus, unbuilt


def _without_counter(saved: _Saved, match: _Match) -> Iterator[Any]:
    for node, item in match.found.items():
        counter = dict(saved.below(node)).get(_COUNTER)
        if counter is not None and counter not in match.found:
            yield item


def _is_counter(path: str) -> bool:
    return path.rpartition(".")[2] == _COUNTER


def _reached(
    saved: _Saved, begin: Iterable[int], paths: Mapping[int, str]
) -> Iterator[tuple[int, str]]:
    """All nodes at or below some, with the way there."""
    queue = deque((node, paths.get(node, "")) for node in begin)
    seen = {node for node, _ in queue}
    while queue:
        node, path = queue.popleft()
        yield node, path
        for name, child in saved.below(node):
            if child not in seen:
                seen.add(child)
                queue.append((child, f"{path}.{name}"))


def _is_variable(value: Any) -> bool:
    # Neither Keras's variables nor those that are cut over parameter servers are tf.Variable.
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _described(dtype: Any, shape: Any) -> str:
    return f"{tf.as_dtype(dtype).base_dtype.name} {tf.TensorShape(shape)}"


def _name(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "nothing"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
