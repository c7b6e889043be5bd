"""torch's modules: a folder that is a model to any reader of safetensors."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

from trainkit.checkpoint.adapters.base import Apply, Document, Reading, Saved
from trainkit.checkpoint.adapters.torch.plain import hidden_child, plain_sources, plain_tensors
from trainkit.checkpoint.adapters.torch.sharded import (
    described,
    gathered,
    is_sharded,
    like,
    own_part,
    stand_ins,
)
from trainkit.checkpoint.adapters.torch.straight import straight_into
from trainkit.checkpoint.adapters.torch.tensors import (
    DTYPES,
    copy_all_into,
    dtype_of,
    is_tensor,
    restored,
    source,
)
from trainkit.checkpoint.format.layout import RESERVED, sharded_path
from trainkit.checkpoint.format.tensors import METADATA, ReadTensor
from trainkit.errors import EnvironmentFaultError, UsageError

__all__ = ["ModuleAdapter", "canonical_names", "with_tied"]

log = logging.getLogger(__name__)


def canonical_names(module: torch.nn.Module) -> Callable[[str], str]:
    """How names of ``module``'s parameters and buffers are stored: without its wrappers.

    Without what ``hidden_child`` tells, at any depth, so that a state loads bare, wrapped and
    compiled alike. A child that a user calls ``module`` keeps its name.
    """
    dropped = set()
    for path, child in module.named_modules(remove_duplicate=False):
        if hidden := hidden_child(type(child)):
            dropped.add(f"{path}.{hidden}" if path else hidden)

    def canonical(name: str) -> str:
        parts = name.split(".")
        paths = (".".join(parts[: i + 1]) for i in range(len(parts)))
        kept = [part for part, path in zip(parts, paths, strict=True) if path not in dropped]
        return ".".join(kept)

    return canonical if dropped else str


class ModuleAdapter:
    """Saves a module as a folder that any reader of safetensors takes for a model.

    Tied weights are stored under each of their names, so that ``load_state_dict`` of the plain
    file is complete. A module's extra state, which may be any value, lies beside it.
    """

    kind: ClassVar[str] = "module"

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``StateAdapter.capture``."""
        if name in RESERVED:
            raise UsageError(f"a module cannot be the checkpoint entry {name!r}: name it otherwise")
        plain = plain_tensors(state[name])
        if plain is not None:
            return [Document(f"{name}/model", plain_sources(name, plain))]
        tensors, extra, sharded = {}, {}, {}
        for key, _, value in _items(state[name]):
            if is_sharded(value):
                sharded[key] = described(value, f"{name}.{key}")
            elif is_tensor(value) and key != METADATA:
                tensors[key] = source(value, f"{name}.{key}")
            else:
                extra[key] = value
        documents = [Document(f"{name}/model", tensors)]
        if extra:
            documents.append(Document.of(f"{name}/extra", name, extra))
        if sharded:
            documents.append(Document(sharded_path(f"{name}/model"), None, sharded))
        return documents

    def own_parts(self, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """See ``ShardedAdapter.own_parts``."""
        parts = {key: own_part(v) for key, _, v in _items(state[name]) if is_sharded(v)}
        return {key: part for key, part in parts.items() if part is not None}

    def prepare(
        self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]
    ) -> Apply | Reading:
        """See ``StateAdapter.prepare``."""
        module, stored = state[name], saved[f"{name}/model"].tensors
        plain = plain_tensors(module)
        if plain is not None and saved.keys() == {f"{name}/model"}:
            return _into_plain(name, plain, stored)
        found: dict[str, Any] = {key: restored(tensor) for key, tensor in stored.items()}
        if f"{name}/extra" in saved:
            found.update(saved[f"{name}/extra"].value())
        sharded = saved.get(sharded_path(f"{name}/model"))
        found.update(stand_ins(name, sharded))
        expected = {key: (own, value) for key, own, value in _items(module)}
        targets = {key: value for key, (_, value) in expected.items()}
        _compare(name, targets, found)
        found.update(gathered(sharded, targets))
        mapped = {own: like(found[key], value) for key, (own, value) in expected.items()}

        return lambda: module.load_state_dict(mapped)


def with_tied(
    module: torch.nn.Module, tensors: Mapping[str, ReadTensor]
) -> Mapping[str, ReadTensor]:
    """``tensors`` and, under the names that are missing, those that they are tied to.

    Hugging Face's files have weights that are tied under one of their names alone.
    """
    names: dict[tuple[object, ...], list[str]] = {}
    for key, _, value in _items(module):
        if is_tensor(value) and not is_sharded(value) and value.numel():
            place = (value.device, value.data_ptr(), tuple(value.shape), value.stride())
            names.setdefault(place, []).append(key)
    filled = dict(tensors)
    for tied in names.values():
        there = next((key for key in tied if key in tensors), None)
        if there is not None:
            filled |= {key: tensors[there] for key in tied if key not in tensors}
    return filled


_HINT = (
    "Restore into the model that was saved, or start with another checkpoint folder; it has "
    "changed nothing."
)


def _items(module: torch.nn.Module) -> Iterator[tuple[str, str, Any]]:
    """The module's state as stored name, own name, value."""
    canonical = canonical_names(module)
    for own, value in module.state_dict().items():
        yield canonical(own), own, value


def _into_plain(
    name: str, targets: Mapping[str, torch.Tensor], stored: Mapping[str, ReadTensor]
) -> Apply | Reading:
    """What puts tensors, and does nothing else, into those of a module.

    Thousands of small ones are common, so every operation here counts.
    """
    _compare_names(name, targets, stored)
    for key, target in targets.items():
        found = stored[key]
        if target.shape != found.shape or DTYPES.get(target.dtype) != found.dtype:
            _compare_tensors(f"{name}.{key}", target, found.shape, dtype_of(found))
    if reading := straight_into(targets, stored):
        return reading
    values = [restored(stored[key]) for key in targets]
    return lambda: copy_all_into([*targets.values()], values)


def _compare(name: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a saved module with other names or shapes, and warn of other element types."""
    _compare_names(name, expected, found)
    for key, value in expected.items():
        if is_tensor(value):
            saved = found[key]
            dtype = saved.dtype if is_tensor(saved) else None
            _compare_tensors(f"{name}.{key}", value, tuple(getattr(saved, "shape", ())), dtype)


def _compare_names(name: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if expected.keys() == found.keys():
        return
    missing = [key for key in expected if key not in found]
    surplus = [key for key in found if key not in expected]
    raise EnvironmentFaultError(
        f"{name}: the checkpoint is of another model. In the run and not in the checkpoint: "
        f"{_some(missing)}; in the checkpoint and not in the run: {_some(surplus)}. {_HINT}"
    )


def _compare_tensors(
    name: str, expected: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None
) -> None:
    """Compare with what was saved; its ``dtype`` is None where that was no tensor."""
    if dtype is None or expected.shape != shape:
        raise EnvironmentFaultError(
            f"{name}: the run expects the shape {tuple(expected.shape)}, the checkpoint holds "
            f"{shape}. {_HINT}"
        )
    if expected.dtype != dtype:
        log.warning(
            "%s: saved as %s and restored as %s; values may lose precision",
            name,
            dtype,
            expected.dtype,
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "nothing"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
