"""The worker pod of an MPI job: an sshd by which the launcher's mpirun comes in.

    python -m trainkit.launch.sshd --host-key PATH -- /usr/sbin/sshd -D -e …

makes a host key where there is none, runs that sshd, and tells the pod's ranks when it is to end.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainkit import config
from trainkit.errors import EnvironmentFaultError, NoPermissionError, TrainkitError
from trainkit.launch.mpi.drain import stay_with
from trainkit.launch.plan import ProgramPlan
from trainkit.launch.users import ssh_folders, user_home

__all__ = ["main", "plan_sshd"]

_UNPRIVILEGED_PORT = 2222
_SEPARATION = Path("/run/sshd")
"""Root's sshd wants this empty folder, which a service manager would have made at boot."""


def plan_sshd(environ: Mapping[str, str]) -> ProgramPlan:
    """Plan the sshd of this pod: in the foreground, with its log on stderr.

    Like ``/usr/sbin/sshd -De``, the operators' default, with what that lacks in a pod: a host
    key, a port that this user may open, and keys in a mounted Secret, whose folder sshd would
    find too open.

    Raises:
        EnvironmentFaultError: there is no sshd, or this user has no entry in /etc/passwd.
        UsageError: a ``TRAINKIT_*`` value cannot be parsed.
    """
    home = user_home("sshd cannot let anybody in as this user")
    found = shutil.which("sshd", path=f"{environ.get('PATH') or os.defpath}:/usr/sbin:/sbin")
    if found is None:
        raise EnvironmentFaultError(
            "this is a worker of an MPI job, and there is no sshd on PATH or in /usr/sbin for the "
            "launcher to come in by. Install openssh-server in the image."
        )
    root = os.geteuid() == 0
    own = home / ".sshd_config"  # as MPI operators' own images have it
    key = Path(tempfile.gettempdir(), f"trainkit-sshd-{os.geteuid()}", "host_key")
    # sshd runs itself again for each connection, and wants to be called by its full path.
    line = [os.path.abspath(found), "-D", "-e", "-h", str(key)]
    if not root and own.is_file():
        line += ["-f", str(own)]
    port = config.settings(environ).ssh_port
    if port is None and not root and not own.is_file():
        port = _UNPRIVILEGED_PORT
    if port is not None:
        line += ["-p", str(port)]
    authorized = " ".join(f"{folder}/authorized_keys" for folder in ssh_folders())
    options = {
        "AuthorizedKeysFile": f".ssh/authorized_keys {authorized}",
        "KbdInteractiveAuthentication": "no",
        "MaxSessions": "100",
        "MaxStartups": "200",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        # A Secret is a folder of links that everybody may list, and its owner is root.
        "StrictModes": "no",
        "UseDNS": "no",
        "UsePAM": "no",
    }
    for name, value in options.items():
        line += ["-o", f"{name}={value}"]
    program = (sys.executable, "-m", "trainkit.launch.sshd")
    return ProgramPlan(
        command=(*program, "--host-key", str(key), "--", *line),
        why="sshd, by which the launcher's mpirun comes in",
        label="sshd",
        reports=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make what sshd needs, and stay with it to its end."""
    parser = argparse.ArgumentParser(prog="python -m trainkit.launch.sshd")
    parser.add_argument("--host-key", required=True, help="made where it is not there")
    parser.add_argument("command", nargs="+", help="sshd and its arguments, after --")
    options = parser.parse_args(argv)
    try:
        _make_host_key(Path(options.host_key))
        if os.geteuid() == 0:
            _make_separation()
        return stay_with(options.command)
    except TrainkitError as error:
        print(f"trainkit: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    except OSError as reason:
        print(f"trainkit: cannot run {options.command[0]}: {reason.strerror}", file=sys.stderr)
        return int(EnvironmentFaultError.exit_code)


def _make_separation() -> None:
    try:
        _SEPARATION.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as reason:
        raise EnvironmentFaultError(
            f"root's sshd needs the folder {_SEPARATION}, and it cannot be made: "
            f"{reason.strerror}. Mount an emptyDir at {_SEPARATION.parent}, or run as a user."
        ) from None


def _make_host_key(path: Path) -> None:
    """A key of this pod alone, kept over restarts of its container's sshd.

    Raises:
        NoPermissionError: its folder cannot be made, or is somebody else's.
        EnvironmentFaultError: ssh-keygen is missing or fails.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.parent.lstat().st_uid
    except OSError as reason:
        raise NoPermissionError(
            f"cannot make {path.parent} for sshd's host key: {reason.strerror}. Set TMPDIR to a "
            f"folder that this user may write."
        ) from None
    if owner != os.geteuid():
        raise NoPermissionError(
            f"{path.parent} belongs to uid {owner}, and sshd's host key would be put there. "
            f"Remove it, or set TMPDIR."
        )
    if path.exists():
        return
    keygen = shutil.which("ssh-keygen")
    if keygen is None:
        raise EnvironmentFaultError(
            "sshd needs a host key, and there is no ssh-keygen to make one. Install "
            "openssh-client in the image."
        )
    # Made aside and moved, since another sshd may be coming up at the same place; ssh-keygen
    # asks before it overwrites, and a key that is half written would stop both.
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside, "host_key")
        line = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(made)]
        try:
            done = subprocess.run(  # noqa: S603
                line, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFaultError(f"ssh-keygen made no {made} within 60 s") from None
        if done.returncode != 0:
            said = (done.stderr + done.stdout).decode(errors="replace").strip()
            raise EnvironmentFaultError(f"ssh-keygen cannot make {made}: {said}")
        made.rename(path)


if __name__ == "__main__":
    sys.exit(main())
