"""Pods of an MPI job on this machine: each with a network, a host name and an sshd of its own.

Run as a program: ``python pods.py JOB FOLDER LAUNCHER WORKER…``. It must be the first process of
new mount, network, UTS and PID namespaces (`command` gives the line), so that whatever happens,
nothing of it outlives the test. LAUNCHER and each WORKER are JSON lists: command lines. FOLDER
gets the workers' output.

There are files as mpi-operator mounts them, and those of a v1 MPIJob too: the agent kubexec.sh,
which enters a worker's namespaces where the real one asks kubectl to, and a hostfile of pods'
names.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HOME = pwd.getpwuid(0).pw_dir
HOSTFILE = "/etc/mpi/hostfile"
V1_HOSTFILE = "/etc/mpi/hostfile-v1"
KUBEXEC = "/etc/mpi/kubexec.sh"
_KUBEXEC = """#!/bin/sh
pod=$1
shift
exec nsenter -t "$(cat /etc/mpi/$pod.pid)" --net --uts -- \\
  /usr/bin/env -i HOME={home} PATH=/usr/bin:/bin /bin/sh -c "$*"
"""
_NAMESPACES = ("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child")


def missing() -> str | None:
    """Why pods cannot be made here, or None."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    for name, found in (("sshd", sshd), ("ssh", shutil.which("ssh")), ("ip", shutil.which("ip"))):
        if found is None:
            return f"needs {name}"
    if os.geteuid() != 0:
        return "needs root, to make namespaces"
    tried = subprocess.run(
        [*_NAMESPACES, "ip", "link", "add", "tk0", "type", "bridge"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return f"needs network namespaces: {tried.stderr.strip()}" if tried.returncode else None


def command(
    job: str, folder: Path, launcher: Sequence[str], workers: Sequence[Sequence[str]]
) -> list[str]:
    """The command line that makes the pods and ends with the launcher's exit code."""
    lists = [json.dumps(list(argv)) for argv in (launcher, *workers)]
    return [*_NAMESPACES, sys.executable, __file__, job, str(folder), *lists]


def hostname_of(job: str, index: int) -> str:
    return f"{job}-worker-{index}.{job}.default.svc"


def main(job: str, folder: str, launcher: str, *workers: str) -> int:
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    _private(Path(folder))
    _files(job, Path(folder), len(workers))
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "br0", "type", "bridge")
    _run("ip", "addr", "add", "10.77.0.1/24", "dev", "br0")
    _run("ip", "link", "set", "br0", "up")
    _run("ip", "route", "add", "default", "dev", "br0")
    for index, argv in enumerate(workers):
        _worker(job, index, json.loads(argv), Path(folder))
    _run("hostname", f"{job}-launcher")
    return subprocess.call(json.loads(launcher))


def _private(folder: Path) -> None:
    """Let what the pods write be seen in these namespaces alone, but for ``folder``."""
    layers, kept = Path("/run/pods-layers"), Path("/run/pods-folder")
    _overlay("/run", folder / "layers")
    for place in (layers, kept):
        place.mkdir()
    _run("mount", "--bind", str(folder), str(kept))
    for place in ("/etc", HOME, "/tmp"):
        _overlay(place, layers / place[1:].replace("/", "-"))
    _run("mount", "--bind", str(kept), str(folder))
    for name in (".bashrc", ".profile", ".bash_profile"):  # of whoever runs the tests
        Path(HOME, name).write_text("")


def _overlay(place: str, layer: Path) -> None:
    layer.mkdir()
    _run("mount", "-t", "tmpfs", "tmpfs", str(layer))
    upper, work = layer / "upper", layer / "work"
    upper.mkdir()
    work.mkdir()
    upper.chmod(Path(place).stat().st_mode & 0o7777)
    options = f"lowerdir={place},upperdir={upper},workdir={work}"
    _run("mount", "-t", "overlay", "overlay", "-o", options, place)


def _files(job: str, folder: Path, workers: int) -> None:
    """What the operator mounts: the Secret's keys, the hostfile; and what DNS would say."""
    secret = folder / "secret"
    secret.mkdir()
    _run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", str(secret / "id_rsa"))
    shutil.copy(secret / "id_rsa.pub", secret / "authorized_keys")
    home = Path(HOME, ".ssh")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o777)
    home.chmod(0o777)  # as a Secret's volume is
    data = home / "..data"  # a Secret is mounted as links into a folder of this name
    data.mkdir(mode=0o755)
    for file in secret.iterdir():
        shutil.copy(file, data / file.name)
        (data / file.name).chmod(0o640 if file.name == "id_rsa" else 0o644)
        (home / file.name).symlink_to(f"..data/{file.name}")
    hosts = folder / "hosts"
    addresses = [f"10.77.0.{index + 2} {hostname_of(job, index)}" for index in range(workers)]
    hosts.write_text("127.0.0.1 localhost\n" + "\n".join(addresses) + "\n")
    _run("mount", "--bind", str(hosts), "/etc/hosts")
    Path("/etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    Path("/etc/mpi").mkdir()
    _run("mount", "-t", "tmpfs", "tmpfs", "/etc/mpi")
    lines = [f"{hostname_of(job, index)} slots=2" for index in range(workers)]
    Path(HOSTFILE).write_text("\n".join(lines) + "\n")
    names = [f"{job}-worker-{index} slots=2" for index in range(workers)]
    Path(V1_HOSTFILE).write_text("\n".join(names) + "\n")
    Path(KUBEXEC).write_text(_KUBEXEC.replace("{home}", HOME))
    Path(KUBEXEC).chmod(0o555)


def _worker(job: str, index: int, argv: Sequence[str], folder: Path) -> None:
    near, far = f"near{index}", f"far{index}"
    script = (
        f"hostname {job}-worker-{index}; read -r _; ip link set lo up; ip link set {far} up; "
        f"ip addr add 10.77.0.{index + 2}/24 dev {far}; ip route add default via 10.77.0.1; "
        # as the kubelet writes it: a pod knows its own short name, which DNS does not
        f"cp /etc/hosts /tmp/hosts{index}; "
        f"echo 10.77.0.{index + 2} {job}-worker-{index} >> /tmp/hosts{index}; "
        f"mount --bind /tmp/hosts{index} /etc/hosts; umount -q /etc/mpi; "
        f'echo pod {index} ready >&2; exec "$@"'
    )
    env = {"PATH": os.environ["PATH"], "K_MPI_JOB_ROLE": "worker"}
    if "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    with open(folder / f"worker-{index}.log", "wb") as log:
        pod = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "bash", "-c", script, "pod", *argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=env,
        )
    assert pod.stdin is not None
    Path(f"/etc/mpi/{job}-worker-{index}.pid").write_text(str(pod.pid))
    _run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
    _run("ip", "link", "set", near, "master", "br0", "up")
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pod.pid}/ns/net") == own:  # unshare has not come that far
        time.sleep(0.005)
    _run("ip", "link", "set", far, "netns", str(pod.pid))
    pod.stdin.write(b"go\n")
    pod.stdin.close()


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=30)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
