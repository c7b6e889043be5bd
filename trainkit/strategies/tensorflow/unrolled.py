"""A step several times in one graph, one after another, though it is traced only once."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

__all__ = ["Unrolled"]


class Unrolled:
    """The operations of a traced function, to be put into other graphs as often as they are asked.

    To call the function as often would do the same, with twice the messages: around each call
    TensorFlow sets two empty operations on the caller's device, so that what variables on another
    device have to wait for goes there and back once more between two steps.
    """

    def __init__(self, traced: Any) -> None:
        """Take the operations of ``traced``, a concrete function."""
        self._traced = traced
        arguments = {tensor.op.name for tensor in traced.graph.inputs}
        self._graph = traced.graph.as_graph_def()
        kept = [node for node in self._graph.node if node.name not in arguments]
        for node in kept:
            _stand_free(node, arguments)
        self._used = {_origin(name) for node in kept for name in node.input} & arguments
        del self._graph.node[:]
        self._graph.node.extend(kept)

    def put(self, arguments: Any) -> Any:
        """Add the operations to the graph that is being built, and return what they return.

        Args:
            arguments: of the function, as a structure.
        """
        graph, inputs = tf.compat.v1.get_default_graph(), self._traced.graph.inputs
        given = tf.nest.flatten(arguments, expand_composites=True)
        given += self._traced.captured_inputs
        values = {
            inside.name: graph.capture(outside)
            for inside, outside in zip(inputs, given, strict=True)
        }
        outputs = [tensor.name for tensor in self._traced.graph.outputs]
        made = [name for name in outputs if name not in values]
        values |= zip(
            made,
            tf.graph_util.import_graph_def(
                self._graph,
                input_map={name: values[name] for name in values if _origin(name) in self._used},
                return_elements=made,
                name="step",
            ),
            strict=True,
        )
        return tf.nest.pack_sequence_as(
            self._traced.structured_outputs,
            [values[name] for name in outputs],
            expand_composites=True,
        )


def _stand_free(node: Any, arguments: Iterable[str]) -> None:
    """Do not place ``node`` beside an argument: what comes in its place has a device already."""
    places = node.attr["_class"].list.s if "_class" in node.attr else ()
    kept = [place for place in places if place.decode().removeprefix("loc:@") not in arguments]
    if len(kept) < len(places):
        del node.attr["_class"]
        if kept:
            node.attr["_class"].list.s.extend(kept)


def _origin(name: str) -> str:
    """The operation that an input or a tensor comes from."""
    return name.removeprefix("^").partition(":")[0]
