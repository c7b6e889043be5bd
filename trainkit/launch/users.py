"""Which user this is, to ssh and sshd: they ask the user database, and not HOME."""

import os
import pwd
from pathlib import Path

from trainkit.errors import EnvironmentFaultError
from trainkit.resources.space import mounts

__all__ = ["ssh_folders", "user_home"]


def user_home(consequence: str) -> Path:
    """Home folder of this process's user.

    Args:
        consequence: what does not work without one, for the message.

    Raises:
        EnvironmentFaultError: the user has no entry, as a random uid that a cluster assigns.
    """
    uid = os.geteuid()
    try:
        return Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        raise EnvironmentFaultError(
            f"uid {uid} has no entry in /etc/passwd, so that {consequence}. Set runAsUser to a "
            f"user of the image, or add the entry in its entry point."
        ) from None


def ssh_folders() -> tuple[Path, ...]:
    """Folders where the keys of a job may be, best first: the home's, and what is mounted.

    An operator mounts them where ``sshAuthMountPath`` says, which need not be this user's home.
    """
    own = user_home("there is no home folder to look for keys in") / ".ssh"
    mounted = sorted(Path(place) for place, _ in mounts() if Path(place).name == ".ssh")
    # sshd takes a list of paths apart at blanks.
    return tuple(dict.fromkeys((own, *(one for one in mounted if " " not in str(one)))))
