"""Which framework an object or the process belongs to; imports none of them."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

__all__ = ["FRAMEWORKS", "frameworks_named_by", "loaded", "of_object"]

FRAMEWORKS = ("torch", "tensorflow", "xgboost")
"""Frameworks that have strategies of their own."""

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torch",
    "torchaudio": "torch",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "tf_keras": "tensorflow",
    "xgboost": "xgboost",
}


def loaded(framework: str) -> bool:
    """Whether this process has imported ``framework`` already."""
    return framework in sys.modules


def of_object(value: object) -> str | None:
    """The framework that ``value``'s class, or one of its bases, comes from."""
    for cls in type(value).__mro__:
        framework = _PACKAGES.get(cls.__module__.partition(".")[0])
        if framework is not None:
            return framework
    return None


def frameworks_named_by(namespace: Mapping[str, Any]) -> list[str]:
    """Frameworks that a module's own names refer to, sorted.

    Args:
        namespace: a module's ``__dict__``. Modules, classes and functions in it count by the
            package they come from; what the libraries behind them import does not.
    """
    found = set()
    for value in namespace.values():
        module = value.__name__ if isinstance(value, ModuleType) else _defining_module(value)
        framework = _PACKAGES.get(module.partition(".")[0])
        if framework is not None:
            found.add(framework)
    return sorted(found)


def _defining_module(value: object) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    return module if isinstance(module, str) else ""
