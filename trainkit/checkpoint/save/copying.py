"""From tensors to the arena: the time for which training stands still."""

from collections.abc import Callable, Sequence
from typing import Any

from trainkit.checkpoint.save.arena import Arena
from trainkit.checkpoint.save.files import FileImage, Layout
from trainkit.frameworks import loaded

__all__ = ["fill"]


def fill(
    arena: Arena,
    images: Sequence[tuple[int, FileImage]],
    size: int,
    tell: Callable[[int], None] = lambda filled: None,
) -> None:
    """Copy the bytes of files into an arena.

    Args:
        arena: grows to what is needed.
        images: each with the place where it begins, on a page boundary, ascending.
        size: bytes that are needed in all.
        tell: called now and then with the number of bytes that are there, from the beginning on.

    Raises:
        OSError: there is not that much memory.
        ValueError: a tensor's bytes are not as many as its shape says.
    """
    arena.reserve(size)
    together: list[tuple[int, Any]] = []
    layouts: list[tuple[int, Layout | None]] = []
    """Of what is copied together."""
    with arena.view(0, size) as view:
        for start, image in images:
            view[start : start + len(image.head)] = image.head
            before = len(together)
            for begin, tensor in zip(image.begins, image.tensors, strict=True):
                if tensor.origin is None:
                    begin += start
                    view[begin : begin + tensor.num_bytes] = tensor.load()
                else:
                    together.append((start + begin, tensor.origin))
            if len(together) > before:
                layouts.append((start, image.layout))
    if together and loaded("torch"):
        from trainkit.checkpoint.save.torch import copy_together

        are_known = all(layout is not None for _, layout in layouts)
        copy_together(arena, together, tell, layouts if are_known else ())
    tell(size)
