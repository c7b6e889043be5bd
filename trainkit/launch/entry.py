"""What a rank runs: a Python script or module, or any other program."""

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from trainkit.errors import EnvironmentFaultError, InputMissingError, UsageError

__all__ = ["Entry", "names_torch", "names_xgboost"]

_FAMILY = frozenset({"torch", "torchvision", "torchaudio", "lightning", "accelerate", "deepspeed"})
_MAX_FILES = 200
"""Files of the user's own that are looked through for an import of a framework."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A program and its arguments."""

    kind: Literal["script", "module", "program"]
    target: str
    """Path of the script, name of the module, or the program."""
    arguments: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, target: str, arguments: Sequence[str], *, module: bool = False, python: bool = True
    ) -> "Entry":
        """What a command line names.

        Raises:
            InputMissingError: there is no such script.
            UsageError: a module that is no Python program.
        """
        if module and not python:
            raise UsageError("--no-python and -m exclude each other: a module needs Python")
        if module:
            return cls("module", target, tuple(arguments))
        if not python:
            return cls("program", target, tuple(arguments))
        if not Path(target).exists():
            raise InputMissingError(
                f"there is no script {target!r} (looked in {Path.cwd()}). For a module write -m, "
                f"for a program that is not Python --no-python."
            )
        return cls("script", target, tuple(arguments))

    def argv(self) -> list[str]:
        """The command line that runs it in a new process, unbuffered as under torchrun."""
        if self.kind == "program":
            return [self.target, *self.arguments]
        module = ["-m"] if self.kind == "module" else []
        return [sys.executable, "-u", *module, self.target, *self.arguments]

    def dump(self) -> dict[str, Any]:
        """As plain values."""
        return {"kind": self.kind, "target": self.target, "arguments": list(self.arguments)}

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> "Entry":
        """From the values of ``dump``."""
        return cls(values["kind"], values["target"], tuple(values["arguments"]))

    @classmethod
    def of_this_process(cls) -> "Entry":
        """The command line of this very process, to be run again.

        Raises:
            EnvironmentFaultError: it names no program (standard input, a notebook), so running
                it again would not train.
        """
        arguments = list(sys.orig_argv)
        main_module = sys.modules.get("__main__")
        program = getattr(main_module, "__file__", None)
        inline = "-c" in arguments[1:] and "--multiprocessing-fork" not in arguments
        if (program is None or not Path(program).exists()) and not inline:
            raise EnvironmentFaultError(
                f"this process stands for several ranks and would start its own command once for "
                f"each, and {' '.join(arguments)!r} names no script (standard input, or a "
                f"notebook). Put the training into a file, start it with `trainkit launch` or "
                f"torchrun, or pass num_procs=1."
            )
        first = sys.executable or os.path.realpath("/proc/self/exe")
        return cls("program", first, tuple(arguments[1:]))

    def __str__(self) -> str:
        return f"-m {self.target}" if self.kind == "module" else self.target


def names_torch(entry: Entry) -> bool:
    """Whether the program, or a file of the user's own that it imports, imports torch.

    Nothing is run. What installed packages import does not count, but for those that are
    made for torch; trainkit's own recipes do.
    """
    return _names(entry, _FAMILY)


def names_xgboost(entry: Entry) -> bool:
    """Whether the program, or a file of the user's own that it imports, imports XGBoost."""
    return _names(entry, frozenset({"xgboost"}))


def _names(entry: Entry, family: frozenset[str]) -> bool:
    start = _source(entry)
    if start is None:
        return False
    seen: set[Path] = set()
    waiting = [start]
    roots = [str(start.parent) if entry.kind == "script" else str(Path.cwd())]
    while waiting and len(seen) < _MAX_FILES:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imported(file):
            top = name.partition(".")[0]
            if top in family:
                return True
            found = _own_file(name, roots)
            if found is not None:
                waiting.append(found)
    return False


def _source(entry: Entry) -> Path | None:
    if entry.kind == "script":
        path = Path(entry.target)
        return path if path.is_file() else path / "__main__.py"
    if entry.kind == "program":
        return None
    roots = [str(Path.cwd()), *sys.path]
    return _own_file(f"{entry.target}.__main__", roots) or _own_file(entry.target, roots)


def _own_file(name: str, roots: list[str]) -> Path | None:
    """The file of a module below ``roots``, found without importing anything."""
    where: list[str] | None = roots
    spec = None
    for depth, _ in enumerate(name.split("."), start=1):
        spec = PathFinder.find_spec(".".join(name.split(".")[:depth]), where)
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _imported(file: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, by absolute name."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
