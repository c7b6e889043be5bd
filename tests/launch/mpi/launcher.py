"""What a launcher pod does with a plan, until its end: ``launcher.py [options] command…``."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from trainkit import TrainkitError, detect
from trainkit.launch.mpi import await_hosts, plan_mpirun, remove_files
from trainkit.topology.sight import Sight
from trainkit.waiting import Deadline, wait_until


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=None)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--trap", action="store_true", help="leave the hostfile to mpirun")
    parser.add_argument("--stop-when", default="", help="end itself when this file is there")
    parser.add_argument("--works", action="store_true", help="the launcher is a worker too")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    sight = Sight.here()
    if options.works:
        hostfile = Path(sight.environ["OMPI_MCA_orte_default_hostfile"])
        own = f"{sight.hostname}.{sight.hostname.removesuffix('-launcher')}.default.svc"
        hostfile.write_text(f"{own} slots=1\n{hostfile.read_text()}")
    try:
        plan = plan_mpirun(detect(), options.command, sight.environ, num_ranks=options.n)
        print("planned", plan.implementation, flush=True)
        try:
            await_hosts(plan, Deadline(options.timeout))
            print("reached", len(plan.hosts), flush=True)
            return _run(plan, options)
        finally:
            remove_files(plan)
            print("left behind", sorted(str(p) for p in Path("/tmp").glob("trainkit-mpi-*")))
    except TrainkitError as error:
        print(f"trainkit: {error}", file=sys.stderr)
        return int(error.exit_code)


def _run(plan, options) -> int:
    argv = list(plan.argv)
    if options.trap:
        # what an mpirun does that reads no hostfile, on a machine of any size
        at = next(argv.index(f) for f in ("--hostfile", "-machine", "-f") if f in argv)
        if argv[at] == "--hostfile":
            argv[at : at + 2] = ["--host", f"localhost:{plan.world_size}"]
        else:
            argv[at : at + 2] = ["-hosts", "localhost"]
    process = subprocess.Popen(argv, env={**os.environ, **plan.environ}, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(plan.stop_signal))
    if options.stop_when:
        folder = Path(options.stop_when)
        wait_until(
            lambda: len(list(folder.iterdir())) == plan.world_size,
            what="all ranks to train",
            deadline=Deadline(60),
        )
        os.kill(os.getpid(), signal.SIGTERM)
    code = process.wait()
    # the pods share a process namespace, so that ranks of all hosts would be seen
    wait_until(lambda: not _ranks(), what="ranks to end", deadline=Deadline(10))
    return code if code >= 0 else 128 - code


def _ranks() -> list[str]:
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_text())
        except OSError:
            continue
    return [line for line in lines if "OF-A-RANK" in line and "launcher.py" not in line]


if __name__ == "__main__":
    sys.exit(main())
