"""Runs a target in a rank as a fresh interpreter would, and ends as one would."""

import atexit
import importlib
import importlib.util
import os
import runpy
import signal
import sys
import threading
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from trainkit.testing.targets import Target

__all__ = ["perform", "run_program", "shut_down"]

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
        error.__traceback__ = _without_own_frames(error.__traceback__)
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
    """Run a script or a module as ``__main__``, with a true entry in ``sys.modules``.

    Unlike runpy's functions this leaves ``__main__`` in place afterwards, as exit handlers
    and threads of a real program find it.

    Raises:
        ImportError: there is no such module, or it is a package without ``__main__``.
    """
    main = types.ModuleType("__main__")
    if target.kind == "script":
        loader: Any = SourceFileLoader("__main__", target.file)
        main.__file__, main.__loader__ = target.file, loader
        main.__dict__["__cached__"] = None
        code = loader.source_to_code(loader.get_data(target.file), target.file)
    else:
        spec = _find_program(target.module)
        main.__file__, main.__loader__, main.__spec__ = spec.origin, spec.loader, spec
        main.__package__ = spec.parent
        code = spec.loader.get_code(spec.name)
        sys.argv[0] = spec.origin
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102 - running the user's program is the purpose


def shut_down(code: int) -> None:
    """End this process in the interpreter's order, but without its teardown. Never returns.

    Non-daemon threads are joined, exit handlers run, buffers are flushed.
    """
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        # Private, but there is no other way to make ThreadPoolExecutor's threads end;
        # multiprocessing ends its own forked children in the same way.
        try:
            step()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            code = code or 120  # what CPython exits with when its last flush fails
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _code_of(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _without_own_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    own = {__file__, runpy.__file__, str(Path(__file__).with_name("rank.py"))}
    shown = trace
    while shown is not None and shown.tb_frame.f_code.co_filename in own:
        shown = shown.tb_next
    return shown or trace


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


def _find_program(name: str) -> Any:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.loader is None:
        raise ImportError(f"No module named {name}, or it cannot be run with -m", name=name)
    return spec
