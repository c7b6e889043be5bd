"""Which MPI this launcher pod has, and what else its command line depends on."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainkit.coordination.network import default_interface
from trainkit.errors import EnvironmentFaultError

__all__ = ["MpiTools", "implementation_of"]

_NAMES = ("mpirun", "mpiexec.hydra", "mpiexec")
_VERSION_TIMEOUT = 60.0
"""Seconds that ``mpirun --version`` may take; a cold image on a network disk is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MpiTools:
    """What of this pod the plan of an mpirun depends on."""

    mpirun: str
    """Absolute path of mpirun or mpiexec: Open MPI and Hydra look for their daemon on the other
    hosts beside it."""
    version: str
    """What ``mpirun --version`` prints."""
    uid: int
    """Effective user id; Open MPI refuses 0 unless it is told otherwise."""
    hostname: str = ""
    """This pod's host name, by which mpirun finds itself among the hosts."""
    interface: tuple[str, str] | None = None
    """This pod's network interface and its address. Workers often cannot resolve the launcher's
    name, which is what Hydra would have them connect to."""
    has_mpi4py: bool = True
    """Whether ranks can tell each other through MPI where they meet."""
    folder: str = ""
    """Where the files of a plan are to be: hostfile, ssh's configuration, a copy of the key."""

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> "MpiTools":
        """Look for mpirun on PATH and beside this Python, and ask for its version.

        Raises:
            EnvironmentFaultError: there is none, or it does not say its version.
        """
        mpirun = _find(environ)
        # Launchers of all pods are process 1, and TMPDIR may be on a volume that they share.
        folder = Path(tempfile.gettempdir(), f"trainkit-mpi-{os.geteuid()}-{uuid.uuid4().hex}")
        return cls(
            mpirun=mpirun,
            version=_ask_version(mpirun, environ),
            uid=os.geteuid(),
            hostname=os.uname().nodename,
            interface=default_interface(),
            folder=str(folder),
            has_mpi4py=importlib.util.find_spec("mpi4py") is not None,
        )


def implementation_of(version: str) -> str:
    """``openmpi-5``, ``openmpi-4``, ``intel`` or ``mpich``, by what ``mpirun --version`` prints.

    Open MPI 1 to 3 count as 4, whose flags they know; MVAPICH counts as MPICH.

    Raises:
        EnvironmentFaultError: it is none of these.
    """
    found = re.search(r"\((?:Open MPI|OpenRTE)\)\s+v?(\d+)|Open MPI[^\d\n]*(\d+)\.", version)
    if found:
        return "openmpi-5" if int(found[1] or found[2]) >= 5 else "openmpi-4"
    if "Intel(R) MPI" in version:
        return "intel"
    if "HYDRA" in version.upper():
        return "mpich"
    first = next((line for line in version.splitlines() if line.strip()), "")
    raise EnvironmentFaultError(
        f"mpirun --version says {first[:120]!r}, and trainkit knows Open MPI, MPICH and Intel "
        f"MPI. Put one of these first on PATH."
    )


def _find(environ: Mapping[str, str]) -> str:
    path = environ.get("PATH") or os.defpath
    beside = str(Path(sys.executable).parent)
    for places in (path, beside):
        for name in _NAMES:
            found = shutil.which(name, path=places)
            if found:
                return os.path.abspath(found)
    raise EnvironmentFaultError(
        f"this is the launcher of an MPI job, and there is no mpirun on PATH ({path}) nor in "
        f'{beside}. Install Open MPI in the image: pip install "trainkit[mpi]", or the '
        f"distribution's openmpi-bin."
    )


def _ask_version(mpirun: str, environ: Mapping[str, str]) -> str:
    # Intel's mpirun is a script that needs mpiexec.hydra on PATH.
    path = f"{Path(mpirun).parent}:{environ.get('PATH') or os.defpath}"
    try:
        done = subprocess.run(  # noqa: S603
            [mpirun, "--version"],
            env={**environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as reason:
        raise EnvironmentFaultError(
            f"{mpirun} --version failed ({reason}). Is it of this image's architecture, and are "
            f"its libraries there?"
        ) from None
    text = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode != 0:
        raise EnvironmentFaultError(
            f"{mpirun} --version ended with {done.returncode}: {text.strip()[-300:]!r}. Are its "
            f"libraries there?"
        )
    return text
