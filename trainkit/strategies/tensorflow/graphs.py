"""What a traced function or a Dataset will do, read from its graph."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

__all__ = [
    "draws_by_seed",
    "every_node",
    "graph_of",
    "is_shuffled_at_random",
    "runs_python",
    "serialized",
]

_OF_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def serialized(dataset: Any) -> Any:
    """The graph of a Dataset, as a string tensor that another process can make it anew from."""
    return tf.raw_ops.DatasetToGraphV2(
        input_dataset=tf.data.experimental.to_variant(dataset), external_state_policy=1
    )


def graph_of(dataset: Any) -> Any:
    """The ``GraphDef`` of a Dataset."""
    return tf.compat.v1.GraphDef.FromString(serialized(dataset).numpy())


def every_node(graph: Any) -> Iterator[Any]:
    """The nodes of a ``GraphDef``, and those of all functions that it brings along."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def draws_by_seed(graph: Any) -> bool:
    """Whether something in it draws random numbers that its own seed decides.

    Such an operation counts its draws where it stands, so that a copy of it begins anew.
    """
    return any(
        node.attr[name].i
        for node in every_node(graph)
        for name in ("seed", "seed2")
        if name in node.attr
    )


def runs_python(graph: Any) -> bool:
    """Whether something in it comes back to Python, in the process that has made it."""
    return any(node.op in _OF_PYTHON for node in every_node(graph))


def is_shuffled_at_random(graph: Any) -> bool:
    """Whether something in it shuffles without a seed, and so differs from run to run."""
    nodes = [graph.node, *(function.node_def for function in graph.library.function)]
    for some in nodes:
        constants = {node.name: node for node in some if node.op == "Const"}
        for node in some:
            if not node.op.startswith("Shuffle"):
                continue
            names = [name.partition(":")[0].lstrip("^") for name in node.input[2:4]]
            seeds = [constants[name].attr["value"].tensor for name in names if name in constants]
            if len(seeds) == 2 and not any(tf.make_ndarray(seed).item() for seed in seeds):
                return True
    return False
