"""Which modules of a model are its blocks: what is sharded, or recomputed, one at a time."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from trainkit.errors import StrategyError

__all__ = ["find_blocks", "outermost"]

_CONTAINERS = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)


def find_blocks(
    model: torch.nn.Module, wanted: Sequence[type | str] | None = None
) -> list[tuple[str, torch.nn.Module]]:
    """The blocks of ``model`` by name, each once, inner ones before those that hold them.

    Args:
        model: is itself never a block.
        wanted: classes, or their names. By default what the model names itself (Hugging Face's
            ``_no_split_modules``); else the outermost modules that are repeated: elements of
            a list, a ``Sequential`` or a dict, of a class that is there twice or more, with
            parameters and with modules of their own. A layer is no block.

    Returns:
        Empty where nothing is repeated and nothing was asked for.

    Raises:
        StrategyError: nothing in the model is of a class that was asked for.
    """
    if wanted is not None:
        return _asked_for(model, wanted)[::-1]
    named = getattr(model, "_no_split_modules", None)
    if isinstance(named, list | tuple | set):
        found = [(n, m) for n, m in model.named_modules() if n and type(m).__name__ in named]
        if found:
            return found[::-1]
    return [*_repeated("", model)][::-1]


def outermost(blocks: list[tuple[str, torch.nn.Module]]) -> list[tuple[str, torch.nn.Module]]:
    """Those of ``blocks`` that lie in no other of them."""
    inside = {id(child) for _, block in blocks for child in block.modules() if child is not block}
    return [(name, block) for name, block in blocks if id(block) not in inside]


def _asked_for(
    model: torch.nn.Module, wanted: Sequence[type | str]
) -> list[tuple[str, torch.nn.Module]]:
    if isinstance(wanted, str | type):
        raise StrategyError(f"blocks={wanted!r}: expected several classes or names, as a list")
    inside = [(name, module) for name, module in model.named_modules() if name]
    for kind in wanted:
        if not any(_is_a(module, kind) for _, module in inside):
            known = ", ".join(sorted({type(module).__name__ for _, module in inside}))
            shown = kind if isinstance(kind, str) else kind.__name__
            raise StrategyError(
                f"blocks={shown!r}: {type(model).__name__} has no such module. It has {known}."
            )
    return [(name, module) for name, module in inside if any(_is_a(module, k) for k in wanted)]


def _is_a(module: torch.nn.Module, kind: type | str) -> bool:
    return type(module).__name__ == kind if isinstance(kind, str) else isinstance(module, kind)


def _repeated(prefix: str, parent: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    children = [(name, child) for name, child in parent.named_children() if _is_composed(child)]
    counts = Counter(type(child) for _, child in children)
    for name, child in children:
        path = f"{prefix}{name}"
        is_element = isinstance(parent, _CONTAINERS) and type(child) not in _CONTAINERS
        if is_element and counts[type(child)] > 1:
            yield path, child
        else:
            yield from _repeated(f"{path}.", child)


def _is_composed(module: torch.nn.Module) -> bool:
    has_children = next(module.children(), None) is not None
    return has_children and next(module.parameters(), None) is not None
