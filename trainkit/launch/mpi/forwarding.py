"""Which variables of the launcher pod its ranks on other hosts are to see.

A session of sshd starts with a fresh environment, so that a rank has what mpirun is told to
carry there, and nothing else.
"""

import re
from collections.abc import Iterable, Mapping

__all__ = ["forwarded", "is_of_another_world", "preemption_signals"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_POD = frozenset(
    (
        "_",
        "CUDA_VISIBLE_DEVICES",
        "DISPLAY",
        "GPU_DEVICE_ORDINAL",
        "HIP_VISIBLE_DEVICES",
        "HOME",
        "HOST",
        "HOSTNAME",
        "LOGNAME",
        "MAIL",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "OLDPWD",
        "PPID",
        "PWD",
        "ROCR_VISIBLE_DEVICES",
        "SHELL",
        "SHLVL",
        "TEMP",
        "TERM",
        "TMP",
        "TMPDIR",
        "TTY",
        "UID",
        "USER",
    )
)
"""Of this pod alone. MPI operators empty NVIDIA_* in a launcher so that it gets no GPU."""

_POD_PREFIXES = ("KUBERNETES_", "SSH_", "XDG_", "SUDO_", "LC_ID", "CONDA_SHLVL")
_SERVICE_LINK = re.compile(r".*_(SERVICE_(HOST|PORT)(_.*)?|PORT_\d+_(TCP|UDP)(_.*)?)")
_LINK_VALUES = ("tcp://", "udp://", "sctp://")

_MPI_PREFIXES = (
    "OMPI_",
    "OPAL_",
    "ORTE_",
    "PMIX_",
    "PRTE_",
    "PMI_",
    "MPI_LOCAL",
    "I_MPI_HYDRA_",
    "I_MPI_PERHOST",
    "HYDRA_",
    "MV2_COMM_WORLD_",
)
"""mpirun's own. Open MPI carries those of its version itself; those that an operator sets for
another one would only mislead."""

_OTHER_WORLD = frozenset(
    (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "NODE_RANK",
        "K_MPI_JOB_ROLE",
        "JOB_COMPLETION_INDEX",
        "TF_CONFIG",
    )
)
_OTHER_WORLD_PREFIXES = ("PET_", "TORCHELASTIC_", "SLURM_", "DMLC_", "PADDLE_")


def is_of_another_world(name: str) -> bool:
    """Whether a variable numbers the launcher pod, or a job around it, and no MPI rank."""
    return name in _OTHER_WORLD or name.startswith(_OTHER_WORLD_PREFIXES)


def forwarded(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that ranks on other hosts are to get, sorted.

    Everything of the launcher but what is its own: the job's author puts variables there.
    Names alone are needed: mpirun takes the values from its environment, so that none of them
    is on a command line.
    """
    return tuple(sorted(name for name, value in environ.items() if _travels(name, value)))


def _travels(name: str, value: str) -> bool:
    if not _NAME.fullmatch(name) or "\0" in value:
        return False
    if name in _POD or name.startswith((*_POD_PREFIXES, *_MPI_PREFIXES)):
        return False
    if _SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and value.startswith(_LINK_VALUES)):
        return False
    return not is_of_another_world(name)


def preemption_signals(names: Iterable[str]) -> str:
    """TRAINKIT_PREEMPTION_SIGNALS of the ranks: what is set already, and SIGUSR1.

    mpirun answers SIGTERM by killing its ranks within a second or so, but hands SIGUSR1 on.
    """
    return ",".join(dict.fromkeys([*names, "SIGUSR1"]))
