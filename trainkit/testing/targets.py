"""What a rank is to run, in a form that can be written down and read in another process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainkit.errors import InputMissingError, UsageError

__all__ = ["Target", "TargetLike"]

TargetLike = Callable[..., Any] | Path | str
"""A module-level function, a script's `Path`, ``"module:function"`` or ``"-m module"``."""


@dataclass(frozen=True, slots=True)
class Target:
    """A function, a script or a module; holds plain values only."""

    kind: Literal["function", "script", "module"]
    module: str = ""
    """The module's name, for functions and modules."""
    qualname: str = ""
    """Where in the module the function is."""
    file: str = ""
    """The script, or the file of a function's module when its name may not be importable."""

    def __str__(self) -> str:
        if self.kind == "script":
            return self.file
        return f"-m {self.module}" if self.kind == "module" else f"{self.module}:{self.qualname}"

    @classmethod
    def of(cls, target: TargetLike) -> "Target":
        """Describe ``target``.

        Raises:
            UsageError: it is none of the forms that `TargetLike` lists.
            InputMissingError: the script does not exist.
        """
        if isinstance(target, Path):
            return cls._script(target)
        if not isinstance(target, str):
            return cls._function(target)
        if target.startswith("-m "):
            return cls("module", module=target.removeprefix("-m ").strip())
        module, colon, qualname = target.rpartition(":")
        if colon and module.endswith(".py"):
            return cls("function", Path(module).stem, qualname, cls._script(Path(module)).file)
        if colon:
            return cls("function", module, qualname)
        if target.endswith(".py"):
            return cls._script(Path(target))
        raise UsageError(
            f"target={target!r} is none of the forms a rank can run: 'module:function', "
            "'file.py:function', 'script.py', '-m module'."
        )

    @classmethod
    def _script(cls, path: Path) -> "Target":
        if not path.is_file():
            raise InputMissingError(f"There is no script {str(path)!r} (looked in {Path.cwd()}).")
        return cls("script", file=str(path.absolute()))

    @classmethod
    def _function(cls, function: Callable[..., Any]) -> "Target":
        module = getattr(function, "__module__", None)
        qualname = getattr(function, "__qualname__", None)
        if not module or not qualname or "<" in qualname:
            raise UsageError(
                f"target={function!r} cannot be found again by another process: expected a "
                "function at the top level of a module, not a lambda, a nested function, a "
                "partial or a bound method. Pass what varies as arguments."
            )
        # Under pytest's importlib mode a test module's name cannot be imported; its file can.
        file = getattr(sys.modules.get(module), "__file__", None) or ""
        return cls("function", module, qualname, str(Path(file).absolute()) if file else "")
