"""What a traced function or a Dataset will do, read from its graph."""

from collections.abc import Iterator
from typing import Any

__all__ = ["draws_by_seed", "every_node", "runs_python"]

_OF_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


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
