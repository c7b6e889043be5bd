"""Runs a program in a forked process as a fresh interpreter would, and ends as one would."""

import atexit
import gc
import importlib.util
import io
import os
import signal
import sys
import threading
import types
import weakref
from importlib.machinery import SourceFileLoader
from typing import Any, NoReturn

__all__ = [
    "default_signals",
    "own_frames_off",
    "run_module",
    "run_script",
    "shut_down",
    "spare_finalizers",
]


def run_script(path: str) -> None:
    """Run the Python file ``path`` as ``__main__``; whatever it raises goes through.

    Raises:
        OSError: it cannot be read.
    """
    main = types.ModuleType("__main__")
    loader: Any = SourceFileLoader("__main__", path)
    main.__file__, main.__loader__ = path, loader
    main.__dict__["__cached__"] = None
    _run(loader.source_to_code(loader.get_data(path), path), main)


def run_module(name: str) -> None:
    """Run a module, or a package's ``__main__``, as ``python -m`` does.

    Raises:
        ImportError: there is no such module, or it is a package without ``__main__``.
    """
    spec: Any = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.loader is None:
        raise ImportError(f"No module named {name}, or it cannot be run with -m", name=name)
    main = types.ModuleType("__main__")
    main.__file__, main.__loader__, main.__spec__ = spec.origin, spec.loader, spec
    main.__package__ = spec.parent
    sys.argv[0] = spec.origin
    _run(spec.loader.get_code(spec.name), main)


def _run(code: Any, main: types.ModuleType) -> None:
    # Unlike runpy's functions this leaves ``__main__`` in place afterwards, as exit handlers
    # and threads of a real program find it.
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102 - running the user's program is the purpose


def own_frames_off(trace: types.TracebackType | None, *files: str) -> types.TracebackType | None:
    """The traceback without its outer frames that lie in this file or in ``files``."""
    own = {__file__, *files}
    shown = trace
    while shown is not None and shown.tb_frame.f_code.co_filename in own:
        shown = shown.tb_next
    return shown or trace


def spare_finalizers() -> None:
    """Keep processes that are forked from this one from running the finalizers of its modules.

    torch alone takes 30 to 50 ms there to take down its operator tables, one by one, in a
    process whose memory is about to go. What a fork registers itself does run.
    """
    # Private, hence the default: without it the forks only end later.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False


def default_signals(*spared: int) -> None:
    """Handle signals as a fresh interpreter does, all but ``spared``; none is blocked."""
    ignored_by_python = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *spared}:
        if number in ignored_by_python:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def shut_down(code: int) -> NoReturn:
    """End this process in the interpreter's order, but without its teardown.

    Non-daemon threads are joined, exit handlers run, files are flushed. What is left of the
    teardown takes torch half a second, to free memory that is about to go.

    Args:
        code: the exit code; a negative one is the signal to die of.
    """
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        # Private, but there is no other way to make ThreadPoolExecutor's threads end;
        # multiprocessing ends its own forked children in the same way.
        try:
            step()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
    _flush_files()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            code = code or 120  # what CPython exits with when its last flush fails
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _flush_files() -> None:
    """Write out files that the program left open, as their finalizers would have done."""
    for one in gc.get_objects():  # without those that were frozen before the fork
        try:
            if isinstance(one, io.IOBase) and not one.closed and one.writable():
                one.flush()
        except Exception:  # noqa: S112 - a foreign object, or a full disk: as at teardown
            continue
