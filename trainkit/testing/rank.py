"""From the fork to the user's code: what makes a copy of the nursery a process of its own."""

import contextlib
import faulthandler
import importlib
import json
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from trainkit.config import environ, set_environ
from trainkit.processes.kernel import die_with_parent
from trainkit.processes.program import default_signals, shut_down
from trainkit.testing.stage import load_function, perform, run_program
from trainkit.testing.targets import Target

__all__ = ["DUMP_SIGNAL", "become_rank"]

DUMP_SIGNAL = signal.SIGRTMAX - 2
"""Makes a rank write its Python stacks; a real-time one, since programs use SIGUSR1 and 2."""


def become_rank(folder: Path, number: int, nursery: int) -> NoReturn:
    """Turn the process just forked into rank ``number`` of the run in ``folder``, and run it.

    Args:
        folder: holds spec.json, call.pickle, and one folder a rank for what comes out.
        number: which rank.
        nursery: process id of the parent; this process dies with it.
    """
    code = 1
    try:
        os.setsid()
        die_with_parent()
        if os.getppid() != nursery:
            os._exit(1)  # it died before the line above
        own = folder / f"rank-{number}"
        _take_files(own)
        default_signals(DUMP_SIGNAL)
        spec = json.loads((folder / "spec.json").read_text())
        _take_place(spec, spec["base"] | spec["changes"][number])
        code = perform(lambda: _act(spec, folder, own))
    finally:
        # Whatever happens, a rank must not return into the nursery's loop.
        shut_down(code)
    raise AssertionError("shut_down returned")  # pragma: no cover


def _take_files(own: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        # Appending, so that the rank's children do not overwrite what it wrote.
        file = os.open(own / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        # By lines, so that the output of a killed rank is not lost with it. The objects stay
        # the same: handlers of preloaded libraries hold them.
        stream.reconfigure(encoding="utf-8", errors=errors, line_buffering=True)  # type: ignore[union-attr]
    stacks = os.open(own / "stacks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    faulthandler.register(DUMP_SIGNAL, file=stacks, all_threads=True, chain=False)


def _take_place(spec: Mapping[str, Any], variables: Mapping[str, str]) -> None:
    set_environ({name: None for name in environ() if name not in variables} | dict(variables))
    time.tzset()
    tempfile.tempdir = None  # it was looked up with the nursery's variables
    os.chdir(spec["cwd"])
    target = Target(**spec["target"])
    own_paths = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = own_paths + [path for path in spec["path"] if path not in own_paths]
    if target.kind != "function":
        paths.insert(0, str(Path(target.file).resolve().parent) if target.file else spec["cwd"])
    sys.path[:] = paths
    sys.argv[:] = [target.file or "-m", *spec["argv"]]
    importlib.invalidate_caches()
    _reseed(variables)


def _reseed(variables: Mapping[str, str]) -> None:
    # `random` does so itself after a fork, and torch's default seed is a constant anyway.
    numpy_random, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy_random is not None:
        numpy_random.seed(None)
    threads = variables.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdigit() and int(threads) > 1:
        # OpenMP read the variable when it was loaded, in the nursery, where it was 1.
        torch.set_num_threads(int(threads))


def _act(spec: Mapping[str, Any], folder: Path, own: Path) -> None:
    target = Target(**spec["target"])
    if target.kind != "function":
        run_program(target)
        return
    function = load_function(target)
    args, kwargs = pickle.loads((folder / "call.pickle").read_bytes())  # noqa: S301 - our own file
    value = function(*args, **kwargs)
    if value is not None:
        _leave_value(value, own)


def _leave_value(value: object, own: Path) -> None:
    try:
        data = pickle.dumps(value)
    except Exception as reason:
        raise TypeError(
            f"The rank's function returned a {type(value).__name__} that cannot be pickled "
            f"({reason}). Return plain values, such as tensor.tolist()."
        ) from reason
    part = own / "value.part"
    part.write_bytes(data)
    with contextlib.suppress(FileNotFoundError):
        # Renamed when whole: a rank may be killed while it writes.
        part.rename(own / "value.pickle")
