"""A launcher pod in which ``trainkit launch`` runs, and a look at what it leaves behind."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.launch.mpi import pods
from trainkit.waiting import Deadline, wait_until


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trap", action="store_true", help="an mpirun that reads no hostfile")
    parser.add_argument("--stop-when", default="", help="end it when all ranks are in this folder")
    parser.add_argument("--drain", help="end worker 1 in its place: asked, or lost")
    parser.add_argument("--works", action="store_true", help="the launcher is a worker too")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after: trainkit launch")
    options, flags = parser.parse_known_args()
    if options.works:
        hostfile = Path(pods.HOSTFILE)
        host = os.uname().nodename
        own = f"{host}.{host.removesuffix('-launcher')}.default.svc"
        hostfile.write_text(f"{own} slots=1\n{hostfile.read_text()}")
    environ = dict(os.environ)
    if options.trap:
        environ["PATH"] = f"{_deaf_mpirun()}:{environ['PATH']}"
    line = [sys.executable, "-m", "trainkit", "launch", *flags, *options.command]
    process = subprocess.Popen(line, env=environ)
    if options.stop_when:
        wait_until(
            lambda: len(list(Path(options.stop_when).iterdir())) == 4,
            what="all ranks to train",
            deadline=Deadline(60),
        )
        if options.drain:
            worker = f"{os.uname().nodename.removesuffix('-launcher')}-worker-1"
            # as the kubelet does: to the first process of the pod, which is trainkit launch
            number = signal.SIGKILL if options.drain == "lost" else signal.SIGTERM
            os.kill(int(Path(f"/etc/mpi/{worker}.pid").read_text()), number)
        else:
            process.send_signal(signal.SIGTERM)
    code = process.wait()
    # the pods share a process namespace, so that ranks of all hosts would be seen
    wait_until(lambda: not _ranks(), what="ranks to end", deadline=Deadline(10))
    print("left behind", sorted(str(path) for path in Path("/tmp").glob("trainkit-mpi-*")))
    return code


def _deaf_mpirun() -> Path:
    """A folder with an mpirun that starts all ranks here, on a machine of any size."""
    folder = Path("/tmp/deaf")
    folder.mkdir()
    program = folder / "mpirun"
    program.write_text(
        f"""#!/bin/bash
args=()
while [ $# -gt 0 ]; do
    case "$1" in
        --hostfile) args+=(--host localhost:4); shift 2 ;;
        -machine | -f) args+=(-hosts localhost); shift 2 ;;
        *) args+=("$1"); shift ;;
    esac
done
exec {shutil.which("mpirun")} "${{args[@]}}"
"""
    )
    program.chmod(0o755)
    return folder


def _ranks() -> list[str]:
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_text())
        except OSError:
            continue
    mine = ("launcher.py", "trainkit\0launch")
    return [line for line in lines if "OF-A-RANK" in line and not any(m in line for m in mine)]


if __name__ == "__main__":
    sys.exit(main())
