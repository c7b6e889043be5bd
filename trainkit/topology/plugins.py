"""Environments of other packages: entry points of the group ``trainkit.environments``.

Found by reading ``*.dist-info/entry_points.txt`` by hand: ``importlib.metadata`` takes 50 to
90 ms to import and to open every package, which each start would pay.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module

from trainkit.topology.environment import ClusterEnvironment

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["GROUP", "entry_points", "plugged_in", "skip"]

GROUP = "trainkit.environments"


def plugged_in(folders: Iterable[str] | None = None) -> Iterator[ClusterEnvironment]:
    """Environments of installed packages, one after the other; one that breaks is skipped.

    Args:
        folders: where packages are installed; ``sys.path`` by default.
    """
    for name, target in entry_points(sys.path if folders is None else folders):
        module, _, attribute = target.partition(":")
        try:
            found: Any = import_module(module.strip())
            for part in filter(None, attribute.strip().split(".")):
                found = getattr(found, part)
            environment: ClusterEnvironment = found() if isinstance(found, type) else found
            for required in ("name", "detect", "topology"):
                getattr(environment, required)
        except Exception as reason:
            skip(f"{name} ({target})", reason)
            continue
        yield environment


def skip(plugin: str, reason: Exception) -> None:
    """Warn of a plug-in that cannot be asked."""
    import logging  # 9 ms that a start without broken plug-ins need not pay

    logging.getLogger(__name__).warning(
        "environment plug-in %s is broken and skipped: %r", plugin, reason
    )


def entry_points(folders: Iterable[str]) -> list[tuple[str, str]]:
    """Name and ``module:attribute`` of each entry point of our group, in order of the folders."""
    found: dict[str, str] = {}
    for folder in folders:
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue  # sys.path also holds zip files and folders that are not there
        for entry in sorted(entry for entry in entries if entry.endswith(".dist-info")):
            text = _read(f"{folder or '.'}/{entry}/entry_points.txt")
            if GROUP in text:
                for name, target in _group_of(text):
                    found.setdefault(name, target)
    return list(found.items())


def _read(path: str) -> str:
    # Without Python's file objects: there may be hundreds of packages, and most have no such file.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    data = b""
    try:
        while part := os.read(descriptor, 1 << 16):
            data += part
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return data.decode("utf-8", "replace")


def _group_of(text: str) -> Iterator[tuple[str, str]]:
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            yield name.strip(), target.partition("[")[0].strip()  # "module:attr [extra]" is old
