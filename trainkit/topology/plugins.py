"""Environments of other packages: entry points of the group ``trainkit.environments``.

Found by reading ``*.dist-info/entry_points.txt`` by hand: ``importlib.metadata`` takes 50 to
90 ms to import and to open every package, which each start would pay.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Final

from trainkit.topology.environment import ClusterEnvironment

__all__ = ["GROUP", "entry_points", "plugged_in"]

GROUP: Final = "trainkit.environments"

log = logging.getLogger(__name__)


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
            if not (callable(environment.detect) and callable(environment.topology)):
                raise TypeError("detect and topology must be methods")
            log.debug("environment plug-in %s: %s", name, environment.name)
        except Exception as reason:
            log.warning("environment plug-in %s (%s) is skipped: %r", name, target, reason)
            continue
        yield environment


def entry_points(folders: Iterable[str]) -> list[tuple[str, str]]:
    """Name and ``module:attribute`` of each entry point of our group, in order of the folders."""
    found: dict[str, str] = {}
    for folder in folders:
        try:
            entries = sorted(os.listdir(folder or "."))
        except OSError:
            continue  # sys.path also holds zip files and folders that are not there
        for entry in entries:
            if entry.endswith(".dist-info"):
                for name, target in _group_of(os.path.join(folder, entry, "entry_points.txt")):
                    found.setdefault(name, target)
    return list(found.items())


def _group_of(path: str) -> list[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return []
    if GROUP not in text:
        return []
    pairs, inside = [], False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            # "module:attr [extra]" is an old form.
            pairs.append((name.strip(), target.partition("[")[0].strip()))
    return pairs
