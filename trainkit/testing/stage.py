"""Runs a target in a rank as a fresh interpreter would, and ends as one would."""

import importlib
import importlib.util
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

from trainkit.processes.program import own_frames_off, run_module, run_script
from trainkit.testing.targets import Target

__all__ = ["load_function", "perform", "run_program"]

_OWN_FILES = (__file__, str(Path(__file__).with_name("rank.py")))

INTERRUPTED = -int(signal.SIGINT)
"""What `perform` returns when a KeyboardInterrupt went through: die of the signal."""


def perform(act: Any) -> int:
    """Call ``act()``, and return the exit code that an interpreter would end with."""
    try:
        act()
    except SystemExit as end:
        return _code_of(end)
    except BaseException as error:
        # As the interpreter does, through the hook that libraries may have replaced.
        error.__traceback__ = own_frames_off(error.__traceback__, *_OWN_FILES)
        sys.excepthook(type(error), error, error.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def load_function(target: Target) -> Any:
    """The function that ``target`` describes.

    Raises:
        ImportError: its module cannot be imported.
        AttributeError: the module has no such function.
    """
    found: Any = _load_module(target)
    present_main(found)
    for part in target.qualname.split("."):
        found = getattr(found, part)
    return found


def present_main(module: types.ModuleType) -> None:
    """Let ``__main__`` show the names of ``module``: to libraries it is the user's program.

    It gets no ``__file__`` and no ``__spec__``, so that multiprocessing's spawned children do
    not try to import it.
    """
    main = types.ModuleType("__main__")
    main.__dict__.update(
        {name: value for name, value in vars(module).items() if not name.startswith("__")}
    )
    sys.modules["__main__"] = main


def run_program(target: Target) -> None:
    """Run a script or a module as ``__main__``.

    Raises:
        ImportError: there is no such module, or it is a package without ``__main__``.
    """
    if target.kind == "script":
        run_script(target.file)
    else:
        run_module(target.module)


def _code_of(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _load_module(target: Target) -> types.ModuleType:
    # A program that starts ranks from its own functions: as multiprocessing names it.
    name = "__mp_main__" if target.module == "__main__" else target.module
    if not target.file or _importable(name, target.file):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, target.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{target.file} is not a Python file", name=name, path=target.file)
    _stand_in_for_parents(name, target.file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _importable(name: str, file: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return bool(spec and spec.origin and os.path.realpath(spec.origin) == os.path.realpath(file))


def _stand_in_for_parents(name: str, file: str) -> None:
    """Let pickle find ``a.b.c`` although no ``a`` can be imported, as pytest does."""
    folder = Path(file).parent
    while "." in name:
        name = name.rpartition(".")[0]
        if name not in sys.modules:
            parent = types.ModuleType(name)
            parent.__path__ = [str(folder)]
            sys.modules[name] = parent
        folder = folder.parent
