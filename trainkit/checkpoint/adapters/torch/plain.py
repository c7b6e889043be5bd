"""Modules that are nothing but their tensors, seen without torch's own way down to them.

torch's takes ten times longer over 400 layers than copying their 4,000 small tensors, since it
looks through all names once for each layer. Thousands of small tensors are common, so every
operation here counts.
"""

import collections
from collections.abc import Mapping

import torch

from trainkit.checkpoint.adapters.torch.tensors import DTYPES, TorchSource, source
from trainkit.checkpoint.format.tensors import METADATA, TensorSource

__all__ = ["hidden_child", "plain_sources", "plain_tensors"]

_USUAL_WAYS = (
    "load_state_dict",
    "_load_from_state_dict",
    "set_extra_state",
    "state_dict",
    "_save_to_state_dict",
    "get_extra_state",
)
_HOOKS = (
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
)
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_NONE = type(None)
_TABLES = ("_parameters", "_buffers", "_modules")
_DICTS = {dict, collections.OrderedDict}
"""What torch keeps them in; TorchScript and DeepSpeed have their own."""
_DEEPEST = 1000
"""Levels of modules; one that holds itself has more, and is torch's to refuse."""


def hidden_child(kind: type[torch.nn.Module]) -> str | None:
    """The child of such a module of which names are stored without it, since it is wrapped.

    DistributedDataParallel and DataParallel put ``module.`` before the names of what they wrap
    and ``torch.compile`` puts ``_orig_mod.``.
    """
    if issubclass(kind, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
        return "module"
    return "_orig_mod" if kind.__name__ == "OptimizedModule" else None


def plain_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """All that ``state_dict`` would return and ``load_state_dict`` merely copy into.

    Returns:
        By the names that they are stored under, in torch's order. None where any part of the
        module has a way of its own, or tensors of its own kind.
    """
    if torch.__future__.get_swap_module_params_on_conversion():
        return None
    found: dict[str, torch.Tensor] = {}
    kinds: dict[type[torch.nn.Module], tuple[bool, str | None]] = {}
    left = [("", module, 0)]
    while left:
        before, child, depth = left.pop()
        kind = type(child)
        if kind not in kinds:
            kinds[kind] = _has_usual_ways(kind), hidden_child(kind)
        usual, hidden = kinds[kind]
        own = child.__dict__
        if not usual or any(map(own.get, _HOOKS)) or not own.keys().isdisjoint(_USUAL_WAYS):
            return None
        if depth > _DEEPEST or not {type(own.get(table)) for table in _TABLES} <= _DICTS:
            return None
        tensors = own["_parameters"]
        if buffers := own["_buffers"]:
            passing = own["_non_persistent_buffers_set"]
            tensors = tensors | {n: value for n, value in buffers.items() if n not in passing}
        types = set(map(type, tensors.values()))
        if _NONE in types:
            types.discard(_NONE)
            tensors = {name: value for name, value in tensors.items() if value is not None}
        if not types <= _PLAIN:
            return None
        found.update(zip(map(before.__add__, tensors), tensors.values(), strict=True))
        if children := own["_modules"]:
            left += [
                (before if name == hidden else f"{before}{name}.", inner, depth + 1)
                for name, inner in reversed(children.items())
                if inner is not None
            ]
    return None if METADATA in found else found


def plain_sources(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSource]:
    """What ``source`` says of each of ``tensors``, of the entry ``name``.

    Raises:
        UsageError: a layout or an element type that has no place in safetensors.
    """
    strided = torch.strided
    found: dict[str, TensorSource] = {}
    for key, tensor in tensors.items():
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None or tensor.layout is not strided or tensor.is_meta:
            found[key] = source(tensor, f"{name}.{key}")
        else:
            found[key] = TorchSource(dtype, tensor)
    return found


def _has_usual_ways(kind: type[torch.nn.Module]) -> bool:
    """Whether such a module, its children aside, is saved and loaded as torch does by itself."""
    # Batch norm's way of loading is the usual one where no name is missing.
    usual = (torch.nn.Module, torch.nn.modules.batchnorm._NormBase)
    return all(
        any(getattr(kind, name) is getattr(base, name) for base in usual) for name in _USUAL_WAYS
    )
