"""What ranks share before the fork, and what makes a fork a rank of its own after it."""

import contextlib
import gc
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from trainkit import config
from trainkit.errors import InputMissingError, NoPermissionError
from trainkit.launch.entry import Entry
from trainkit.lifecycle import report
from trainkit.lifecycle.stacks import write_stacks_to
from trainkit.processes.kernel import die_with_parent
from trainkit.processes.program import (
    default_signals,
    own_frames_off,
    run_module,
    run_script,
    shut_down,
)

__all__ = ["become_rank", "preload"]

_LATER = (
    "torch._dynamo",  # as much again as torch itself: the first optimizer imports it
    "numpy.random",
    "trainkit.runtime.entry",
    "trainkit.strategies.torch.ddp",
    "trainkit.checkpoint.manager",
    "trainkit.checkpoint.adapters.torch",
)
"""What programs import once they run, by name: nothing of it is used here."""


def preload(*, later: bool = False) -> None:
    """Import torch with one native thread, so that this process can be forked.

    OpenMP and OpenBLAS read their number of threads when they are loaded. Nor does the garbage
    collector run: it would look through the same million objects again and again, a sixth of
    the time, for a few thousand that are garbage; it leaves all of them alone from then on.

    Args:
        later: also what training programs import once they run. Ranks then have no memory of
            their own for it, which the kernel would have to take down, and start again with it.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = config.environ()
    collects = gc.isenabled()
    config.set_environ(dict.fromkeys(names, "1"))
    gc.disable()
    try:
        import torch
        import torch.distributed.elastic.agent.server.api  # what the launcher needs itself

        del torch
        for name in _LATER if later else ():
            with contextlib.suppress(Exception):  # whoever needs it will say what is wrong
                importlib.import_module(name)
    finally:
        gc.freeze()  # a collection in a fork would copy every page that it looks at
        if collects:
            gc.enable()
        config.set_environ({name: before.get(name) for name in names})


def become_rank(request: Mapping[str, Any], files: Mapping[str, int], nursery: int) -> NoReturn:
    """Turn the process just forked into the rank that ``request`` describes, and run it.

    Args:
        request: ``entry``, as ``Entry.dump`` has it, and ``environ``, all of it.
        files: open files for ``stdout`` and ``stderr``; what is missing stays.
        nursery: process id of the parent; this process dies with it.
    """
    code = 1
    try:
        os.setsid()  # a group of its own, to which signals are sent
        die_with_parent()
        if os.getppid() != nursery:
            os._exit(1)  # it died before the line above
        entry = Entry.load(request["entry"])
        _take_files(files)
        default_signals()
        if entry.kind == "program" or not request["forked"]:
            _execute(entry, request["environ"])
        _take_place(entry, request["environ"])
        stacks = config.settings().stacks_file
        if stacks is not None:
            write_stacks_to(stacks)
        code = _perform(entry)
    except BaseException as error:  # before the user's code: a fault of ours, or of the system
        code = report(error, rank=None, error_file=None)
    finally:
        # Whatever happens, a rank must not return into the nursery's loop.
        shut_down(code)


def _take_files(files: Mapping[str, int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if name in files:
            os.dup2(files[name], descriptor)
            os.close(files[name])


def _execute(entry: Entry, environ: Mapping[str, str]) -> NoReturn:
    argv = entry.argv()
    try:
        os.execvpe(argv[0], argv, environ)  # noqa: S606 - running it is the purpose
    except OSError as reason:
        os.write(2, f"trainkit: cannot run {argv[0]!r}: {reason.strerror}\n".encode())
        missing = isinstance(reason, FileNotFoundError)
        kind = InputMissingError if missing else NoPermissionError
        os._exit(int(kind.exit_code))


def _take_place(entry: Entry, environ: Mapping[str, str]) -> None:
    config.set_environ(
        {name: None for name in config.environ() if name not in environ} | dict(environ)
    )
    for stream in (sys.stdout, sys.stderr):
        # As python -u has them. The objects stay the same: handlers of libraries hold them; and
        # so does the encoding, since changing it asks a file for its place, which a pipe lacks.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    time.tzset()
    tempfile.tempdir = None  # it was looked up with the launcher's variables
    own_paths = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    launcher_paths = [path for path in sys.path if path not in own_paths]
    first = str(Path(entry.target).resolve().parent) if entry.kind == "script" else os.getcwd()
    sys.path[:] = [first, *own_paths, *launcher_paths[1:]]
    sys.argv[:] = [entry.target if entry.kind == "script" else "-m", *entry.arguments]
    # What the user's folders held when the launcher looked may be old by a clock tick; the
    # installed packages' folders tell by their times, and to list them anew takes 3 ms.
    for path in (first, *own_paths):
        sys.path_importer_cache.pop(path, None)
    for path, finder in list(sys.path_importer_cache.items()):
        if finder is None:  # there was no such folder
            del sys.path_importer_cache[path]
    numpy_random, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy_random is not None:
        numpy_random.seed(None)  # else all ranks draw the same; `random` sees to itself
    threads = environ.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdigit():
        # OpenMP read the variable when it was loaded, in the launcher, where it was 1.
        torch.set_num_threads(max(1, int(threads)))


def _perform(entry: Entry) -> int:
    """Run the user's program; the exit code is the one that says what an operator may do."""
    environ = config.environ()
    try:
        if entry.kind == "module":
            run_module(entry.target)
        else:
            target = Path(entry.target)
            run_script(str(target / "__main__.py" if target.is_dir() else target))
    except BaseException as error:
        error.__traceback__ = own_frames_off(error.__traceback__, __file__)
        return report(
            error,
            rank=int(environ["RANK"]) if environ.get("RANK", "").isdigit() else None,
            error_file=environ.get("TORCHELASTIC_ERROR_FILE"),
        )
    return 0
