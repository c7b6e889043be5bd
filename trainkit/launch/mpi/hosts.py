"""Before mpirun starts: its files are written, and every host can be reached."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainkit import config
from trainkit.errors import EnvironmentFaultError, NoPermissionError
from trainkit.launch.mpi.placement import short_name
from trainkit.launch.mpi.plan import Mpirun
from trainkit.launch.prerequisites import port_trouble
from trainkit.launch.users import ssh_folders, user_home
from trainkit.waiting import Deadline, backoff, wait_until

__all__ = ["await_hosts", "remove_files"]

_PARALLEL = 32
_ATTEMPT = 30.0
"""Seconds that one attempt to log in may take; ssh itself tries ten times to connect."""
_REFUSED = ("permission denied", "host key verification failed", "too many authentication")
"""Answers of ssh that do not change by waiting, in lower case."""


def await_hosts(plan: Mpirun, deadline: Deadline) -> None:
    """Write the plan's files, and wait until a command can be run on each of its hosts.

    Raises:
        DeadlineError: hosts did not come in time; names them and what each one's last answer
            was.
        EnvironmentFaultError: a host refuses the key, or ssh cannot be used at all.
        NoPermissionError: the plan's folder cannot be made.
    """
    if plan.agent.is_ssh:
        user_home("ssh cannot reach the workers")
        if shutil.which(plan.agent.command[0]) is None:
            raise EnvironmentFaultError(
                f"there is no {plan.agent.command[0]} in this image, and mpirun starts ranks on "
                f"other hosts through it. Install openssh-client."
            )
    _write_files(plan)
    own = short_name(os.uname().nodename)
    # mpirun starts its own ranks without an agent, and a launcher's name may resolve nowhere.
    missing = {host: "not tried yet" for host, _ in plan.hosts if short_name(host) != own}
    total = len(missing)
    environ = {**config.environ(), **plan.environ}

    def all_reached() -> bool:
        pool = ThreadPoolExecutor(min(_PARALLEL, max(1, len(missing))))
        try:
            answers = pool.map(
                lambda host: _trouble(plan, host, environ, min(_ATTEMPT, deadline.left + 1)),
                list(missing),
            )
            for host, answer in zip(list(missing), answers, strict=True):
                if answer:
                    missing[host] = answer
                else:
                    del missing[host]
        finally:
            # An answer that waiting does not change is told at once, not after the slowest host.
            pool.shutdown(wait=False, cancel_futures=True)
        return not missing

    wait_until(
        all_reached,
        what=f"{total} hosts of the MPI job",
        whom=lambda: _listed(missing),
        deadline=deadline,
        hint=(
            "Are these pods running, with an sshd and the job's keys in them? "
            "TRAINKIT_TIMEOUT sets the seconds to wait."
        ),
        pauses=backoff(first=0.1, last=2.0),
    )


def remove_files(plan: Mpirun) -> None:
    """Remove what `await_hosts` wrote; the copy of the key above all."""
    for folder in plan.folders:
        shutil.rmtree(folder, ignore_errors=True)


def _listed(missing: Mapping[str, str]) -> str:
    shown = [f"{host}: {answer}" for host, answer in list(missing.items())[:8]]
    more = f"; and {len(missing) - 8} more" if len(missing) > 8 else ""
    return f"{len(missing)} missing: " + "; ".join(shown) + more


def _trouble(plan: Mpirun, host: str, environ: Mapping[str, str], timeout: float) -> str:
    """What keeps a command from being run on ``host`` now; empty where nothing does."""
    if plan.agent.is_ssh:
        name, port = _address(plan, host)
        answer = port_trouble(name, port, min(5.0, timeout))
        if answer:
            return answer
    line = [*plan.agent.command, *plan.agent.arguments, host, "true"]
    try:
        done = subprocess.run(  # noqa: S603
            line,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:.0f} s"
    except OSError as reason:
        raise EnvironmentFaultError(
            f"cannot run {line[0]!r}, by which mpirun is to reach {host}: {reason.strerror}"
        ) from None
    if done.returncode == 0:
        return ""
    text = done.stderr.decode(errors="replace").strip()
    said = text.splitlines()[-1] if text else f"exit code {done.returncode}"
    if plan.agent.is_ssh and any(word in text.lower() for word in _REFUSED):
        raise EnvironmentFaultError(
            f"{host} answers, and lets nobody in: {said}. Expected the job's key in "
            f"{' or '.join(map(str, ssh_folders()))} here, and its public half in "
            f"authorized_keys there. Set sshAuthMountPath of the MPIJob to the .ssh folder of "
            f"the user that the containers run as."
        )
    return said


def _address(plan: Mpirun, host: str) -> tuple[str, int]:
    """Name and port that ssh will connect to, by its own reading of its configuration."""
    try:
        done = subprocess.run(  # noqa: S603
            [*plan.agent.command, *plan.agent.arguments, "-G", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ATTEMPT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFaultError(
            f"`ssh -G {host}`, which only reads ssh's configuration, took more than "
            f"{_ATTEMPT:.0f} s. Mend ~/.ssh/config or /etc/ssh/ssh_config of the image (Match "
            f"exec, CanonicalizeHostname)."
        ) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise EnvironmentFaultError(
            f"ssh refuses its configuration ({said}). Mend ~/.ssh/config or /etc/ssh/ssh_config "
            f"of the image."
        )
    words = dict(line.split(" ", 1) for line in done.stdout.decode().splitlines() if " " in line)
    return words.get("hostname", host), int(words.get("port", "22"))


def _write_files(plan: Mpirun) -> None:
    for folder in plan.folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
        except OSError as reason:
            raise NoPermissionError(
                f"cannot make {folder} for mpirun's files: {reason.strerror}. Set TMPDIR to a "
                f"folder that this user may write."
            ) from None
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            raise NoPermissionError(
                f"{folder} belongs to somebody else (uid {status.st_uid}), and a key would be "
                f"put there. Remove it, or set TMPDIR."
            )
    try:
        for path, text in plan.files.items():
            _write(Path(path), text.encode())
    except OSError as reason:
        raise EnvironmentFaultError(
            f"cannot write mpirun's files: {reason}. Set TMPDIR to a folder with room."
        ) from None
    if plan.agent.is_ssh:
        _copy_key(Path(plan.agent.config).with_name("id"))


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "wb") as file:
        file.write(content)


def _copy_key(target: Path) -> None:
    """Give ssh a key that it will use: it refuses one of its own user's that others may read.

    A TrainJob mounts the key with mode 0640, and an MPIJob mounts it where sshAuthMountPath says,
    which need not be this user's home.
    """
    for folder in ssh_folders():
        for name in ("id_rsa", "id_ecdsa", "id_ed25519"):
            with contextlib.suppress(OSError):
                _write(target, (folder / name).read_bytes())
                return
