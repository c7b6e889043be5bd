"""How mpirun reaches the other hosts: ssh, or an agent that the operator brought along."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from trainkit.errors import EnvironmentFaultError

__all__ = ["Agent", "agent_of", "ssh_config"]

_AGENTS = (
    "PRTE_MCA_plm_ssh_agent",
    "OMPI_MCA_plm_ssh_agent",
    "OMPI_MCA_plm_rsh_agent",
    "I_MPI_HYDRA_BOOTSTRAP_EXEC",
    "HYDRA_LAUNCHER_EXEC",
)
"""A v1 MPIJob sets two of these to /etc/mpi/kubexec.sh, which takes a pod's name."""

_ARGUMENTS = (
    "OMPI_MCA_plm_rsh_args",
    "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS",
    "HYDRA_LAUNCHER_EXTRA_ARGS",
    "HYDRA_LAUNCH_EXTRA_ARGS",
)
"""ssh's arguments in each MPI; the last one is what mpi-operator sets, and MPICH never read."""

_UNPRIVILEGED_PORT = 2222
"""Where an sshd listens that is not root's: MPI operators' images agree on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The command that runs another command on a host: ``agent [arguments] host command…``."""

    command: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    config: str = ""
    """Path of the ssh configuration that the command reads; empty where it is not ssh."""

    @property
    def is_ssh(self) -> bool:
        """Whether hosts are DNS names with an sshd, and not names for a program's own use."""
        return bool(self.config)


def agent_of(environ: Mapping[str, str], config: str) -> Agent:
    """The agent that the operator or the job's author set, or ssh.

    Args:
        environ: the launcher pod's.
        config: where ssh's configuration will be.

    Raises:
        EnvironmentFaultError: an agent's variable cannot be split into words.
    """
    name = next((name for name in _AGENTS if environ.get(name, "").strip()), None)
    command = ["ssh"] if name is None else _words(environ, name)
    if PurePath(command[0]).name != "ssh":
        return Agent(command=tuple(command))
    arguments = next((one for one in _ARGUMENTS if environ.get(one, "").strip()), None)
    return Agent(
        command=(*command, "-F", config),
        arguments=() if arguments is None else tuple(_words(environ, arguments)),
        config=config,
    )


def _words(environ: Mapping[str, str], name: str) -> list[str]:
    try:
        return shlex.split(environ[name])
    except ValueError as reason:
        raise EnvironmentFaultError(
            f"{name}={environ[name]!r}: cannot be split into words ({reason}). Expected a "
            f"command with its arguments."
        ) from None


def ssh_config(keys: tuple[str, ...], port: int | None, uid: int) -> str:
    """ssh's configuration for mpirun: the image's own, with what a launcher in a pod needs.

    The first value that ssh finds for a keyword counts, so that the user's and the image's files
    go before our defaults, and what must hold goes before them. A file and not arguments, since
    Open MPI 5 cuts arguments at ``=``.

    Args:
        keys: private keys to try, best first.
        port: where sshd listens; None leaves it to the image's files, or 2222 without root.
        uid: this user's; only root can have an sshd on 22.
    """
    identities = "".join(f"  IdentityFile {key}\n" for key in keys)
    first = f"  Port {port}\n" if port else ""
    last = "" if port or uid == 0 else f"  Port {_UNPRIVILEGED_PORT}\n"
    # Nobody is there to answer a question. The hosts' keys are as young as their pods: nothing
    # could be known of them. A key or port that is not asked for comes from the image's files.
    return (
        f"Host *\n  BatchMode yes\n{first}{identities}"
        f"Include ~/.ssh/config\n"
        f"Include /etc/ssh/ssh_config\n"
        f"Host *\n{last}"
        f"  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile /dev/null\n"
        f"  LogLevel ERROR\n"
        f"  ConnectTimeout 10\n"
        f"  ConnectionAttempts 10\n"
        f"  ServerAliveInterval 15\n"
        f"  ServerAliveCountMax 8\n"
    )
