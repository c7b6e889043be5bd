"""Starts ranks as real processes; their deadline is always enforced."""

import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainkit.config import environ
from trainkit.errors import UsageError
from trainkit.testing.connection import nursery_for
from trainkit.testing.environs import torchrun_environ
from trainkit.testing.handles import Ranks
from trainkit.testing.ports import PortReservation
from trainkit.testing.results import RankResult
from trainkit.testing.targets import Target, TargetLike

__all__ = ["run_ranks", "start_ranks"]

PRELOAD = ("torch",)


def run_ranks(
    target: TargetLike,
    n: int,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    base_env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    check: bool = True,
    preload: Sequence[str] = PRELOAD,
) -> list[RankResult]:
    """Run ``target`` in ``n`` processes as torchrun would, and return how each ended.

    Args:
        target: a function at the top level of a module; ``"module:function"`` or
            ``"file.py:function"``; a script (a `Path`, or a text that ends in ``.py``);
            ``"-m module"``.
        n: how many ranks.
        *args: for a function; they and its return value are pickled.
        kwargs: keyword arguments for a function.
        argv: the command line, ``sys.argv[1:]``.
        env: a mapping is laid over torchrun's variables in every rank; a list of ``n`` mappings,
            one a rank, takes the place of torchrun's variables.
        base_env: the environment below ``env``; this process's own by default.
        cwd: the folder to run in; this process's by default.
        timeout: seconds for the whole run. It is always enforced.
        check: raise if a rank failed.
        preload: modules that the ranks find imported. Those that are not installed are passed
            over. Each different tuple has a parent process of its own.

    Raises:
        RanksFailed: a rank ended with another exit code than 0 (with ``check``).
        RanksTimeout: ranks still ran after ``timeout`` seconds, whatever ``check`` is.
        UsageError: the target cannot be run by another process, or the arguments do not fit it.
        InputMissingError: there is no such script.
    """
    with start_ranks(
        target,
        n,
        *args,
        kwargs=kwargs,
        argv=argv,
        env=env,
        base_env=base_env,
        cwd=cwd,
        timeout=timeout,
        preload=preload,
    ) as ranks:
        return ranks.wait(check=check)


@contextmanager
def start_ranks(
    target: TargetLike,
    n: int,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    base_env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    preload: Sequence[str] = PRELOAD,
) -> Iterator[Ranks]:
    """Start ranks, hand them out as they run, and leave nothing of them at the end.

    The arguments are those of `run_ranks`. When the block ends, in whatever way, all ranks and
    all that they started are killed and reaped. They end too when this process dies.

    Raises:
        UsageError: the target cannot be run by another process, or the arguments do not fit it.
        InputMissingError: there is no such script.
    """
    described = Target.of(target)
    _check(described, n, args, kwargs, env)
    connection = nursery_for(preload)
    folder = Path(tempfile.mkdtemp(prefix="trainkit-ranks-"))
    port = PortReservation()
    try:
        spec = {
            "target": asdict(described),
            "argv": [str(word) for word in argv],
            "cwd": str(Path(cwd or ".").absolute()),
            "path": [path or str(Path.cwd()) for path in sys.path],
            **_environs(base_env, env, n, port.port, folder),
        }
        _lay_out(folder, n, spec, (args, dict(kwargs or {})))
        with Ranks(connection, described, folder) as ranks:
            ranks.begin(n, timeout)
            yield ranks
    finally:
        port.release()
        shutil.rmtree(folder, ignore_errors=True)


def _check(
    target: Target, n: int, args: Sequence[Any], kwargs: Mapping[str, Any] | None, env: Any
) -> None:
    if n < 1:
        raise UsageError(f"n={n}: expected at least one rank")
    if target.kind != "function" and (args or kwargs):
        raise UsageError(f"{target} is a program: pass its command line as argv=[…]")
    if env is not None and not isinstance(env, Mapping) and len(env) != n:
        raise UsageError(f"env holds {len(env)} environments for n={n} ranks: expected one each")


def _lay_out(folder: Path, n: int, spec: Mapping[str, Any], call: tuple[Any, ...]) -> None:
    for rank in range(n):
        (folder / f"rank-{rank}").mkdir()
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "call.pickle").write_bytes(pickle.dumps(call))


def _environs(
    base_env: Mapping[str, str] | None,
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None,
    n: int,
    port: int,
    folder: Path,
) -> dict[str, Any]:
    bottom = dict(environ() if base_env is None else base_env)
    if env is not None and not isinstance(env, Mapping):
        return {"base": bottom, "changes": [dict(variables) for variables in env]}
    bottom.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if n > 1:
        bottom.setdefault("OMP_NUM_THREADS", "1")  # torchrun does so too
    changes = []
    for rank in range(n):
        error_file = str(folder / f"rank-{rank}" / "error.json")
        variables = torchrun_environ(rank, n, master_port=port, error_file=error_file)
        changes.append(variables | dict(env or {}))
    return {"base": bottom, "changes": changes}
