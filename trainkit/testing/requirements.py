"""Marks that skip a test where something is missing, and say what."""

import importlib.util
import os
from typing import TYPE_CHECKING

from trainkit.resources.gpus import visible_gpu_count

if TYPE_CHECKING:
    import pytest

__all__ = ["requires_cuda", "requires_module", "requires_root"]


def requires_cuda(n: int = 1) -> "pytest.MarkDecorator":
    """Skip the test unless ``n`` CUDA devices are visible. Does not load torch or touch CUDA."""
    found = visible_gpu_count()
    return _skip_if(found < n, f"needs {n} CUDA device(s), this process sees {found}")


def requires_root() -> "pytest.MarkDecorator":
    """Skip the test unless it runs as root."""
    user = os.geteuid()
    return _skip_if(user != 0, f"needs root, runs as user {user}")


def requires_module(*names: str) -> "pytest.MarkDecorator":
    """Skip the test unless all of these top-level modules are installed. Imports none."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return _skip_if(bool(missing), f"needs {', '.join(missing)}, which is not installed")


def _skip_if(condition: bool, reason: str) -> "pytest.MarkDecorator":
    import pytest  # only those who test need it

    return pytest.mark.skipif(condition, reason=reason)
