"""First act of a rank that mpirun started: see where it stands, then become the training program.

python -m trainkit.launch.mpi.rank --hosts a=2,b=2 --world-size 4 -- python train.py
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from trainkit import config
from trainkit.errors import (
    EnvironmentFaultError,
    InputMissingError,
    NoPermissionError,
    TrainkitError,
    UsageError,
)
from trainkit.launch.mpi.forwarding import is_of_another_world
from trainkit.launch.mpi.hydra import FORWARDED, ending
from trainkit.launch.mpi.placement import Standing, check_placement
from trainkit.topology.environments.mpi import Mpi
from trainkit.topology.sight import Sight

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Check the placement and run the command; returns only where that fails."""
    options = _parser().parse_args(argv)
    environ = config.environ()
    rank = -1
    try:
        if not options.command:
            raise UsageError("no command after --: expected what the rank is to run")
        rank = _check(environ, _hosts(options.hosts), options.world_size)
        # A rank in the launcher's own pod inherits all of its variables.
        kept = {name: text for name, text in environ.items() if not is_of_another_world(name)}
        if options.report is None:
            _become(options.command, kept)
        code = _accompany(options.command, kept)
    except TrainkitError as error:
        print(f"trainkit: {error}", file=sys.stderr, flush=True)
        code = int(error.exit_code)
    if code and options.report is not None:
        os.write(2, ending(options.report, rank, code).encode())
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainkit.launch.mpi.rank")
    parser.add_argument("--hosts", required=True, help="host=slots,host=slots, as the hostfile")
    parser.add_argument("--world-size", type=int, required=True, help="ranks that were planned")
    parser.add_argument("--report", help="token of the launcher that is to learn the exit code")
    parser.add_argument("command", nargs="*", help="what the rank runs, after --")
    return parser


def _hosts(text: str) -> list[tuple[str, int]]:
    pairs = [part.rpartition("=") for part in text.split(",")]
    if not all(host and slots.isdecimal() for host, _, slots in pairs):
        raise UsageError(f"--hosts {text!r}: expected host=slots,host=slots")
    return [(host, int(slots)) for host, _, slots in pairs]


def _check(environ: Mapping[str, str], hosts: list[tuple[str, int]], world_size: int) -> int:
    hostname = os.uname().nodename
    if not Mpi().detect(Sight(environ=environ)):
        raise EnvironmentFaultError(
            f"on {hostname}: no MPI rank's variables are set (OMPI_COMM_WORLD_RANK, PMI_RANK). "
            f"This program is started by mpirun, through `trainkit launch`."
        )
    seen = Mpi().topology(Sight(environ=environ, hostname=hostname))
    standing = Standing(
        hostname=hostname,
        rank=seen.rank or 0,
        world_size=seen.world_size or 1,
        local_world_size=seen.local_world_size,
    )
    try:
        check_placement(standing, hosts, world_size)
    except EnvironmentFaultError as error:
        if config.settings(environ).mpi_placement != "warn":
            raise
        print(f"trainkit: warning: {error}", file=sys.stderr, flush=True)
    return standing.rank


def _become(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Replace this process, so that mpirun watches and signals the training program itself."""
    try:
        os.execvpe(command[0], list(command), environ)  # noqa: S606
    except OSError as reason:
        raise _not_run(command[0], reason) from None


def _accompany(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command as a child and wait for it: Hydra does not tell the launcher its code."""
    try:
        # Hydra gives its rank an open socket (PMI_FD), which the program must inherit.
        process = subprocess.Popen(list(command), env=dict(environ), close_fds=False)  # noqa: S603
    except OSError as reason:
        raise _not_run(command[0], reason) from None
    for number in FORWARDED:
        signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _not_run(program: str, reason: OSError) -> TrainkitError:
    where = f"cannot run {program!r} on {os.uname().nodename}"
    if isinstance(reason, FileNotFoundError):
        return InputMissingError(f"{where}: no such program. Workers need the launcher's image.")
    return NoPermissionError(f"{where}: {reason.strerror}")


if __name__ == "__main__":
    sys.exit(main())
