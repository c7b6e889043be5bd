"""Programs on real ranks of mpirun, each with a deadline, of which nothing is left."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

BESIDE = Path(sys.executable).with_name("mpirun")
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")


def missing() -> str | None:
    """Why no ranks can be started here, or None."""
    if MPIRUN is None:
        return "needs mpirun"
    for name in ("mpi4py", "torch"):
        try:
            __import__(name)  # mpi4py alone does not initialise MPI
        except ImportError:
            return f"needs {name}"
    return None


@dataclass
class Job:
    """An mpirun and its ranks, which write their process ids into ``folder``."""

    process: subprocess.Popen
    folder: Path
    output: str = field(default="")

    def wait(self, seconds: float = 200) -> int:
        """Its exit code; it is killed, and the test fails, where it takes longer."""
        try:
            self.output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end in {seconds} s:\n{self.output}") from None
        return self.process.returncode

    def await_file(self, name: str, seconds: float = 150) -> str:
        """The text of a file that a rank writes in one go."""
        path, deadline = self.folder / name, time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if path.exists():
                return path.read_text()
            if ended:
                break
            time.sleep(0.01)
        self.kill()
        raise AssertionError(f"no {name} came:\n{self.output}")

    def kill(self) -> None:
        """End mpirun and its ranks, in whatever state."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            for path in self.folder.glob("rank-*.pid"):
                try:
                    os.kill(int(path.read_text()), signal.SIGKILL)
                except (OSError, ValueError):
                    continue
        if not self.output:
            self.output, _ = self.process.communicate()


def _end_with_the_test() -> None:
    """A test run that is killed leaves no ranks: mpirun ends its own when it is told to."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start(folder: Path, command: list[str], n: int, **environ: str) -> Job:
    """Start ``command`` on ``n`` ranks of this host, in ``folder``."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    (folder / "tmp").mkdir(exist_ok=True)  # the folder of meetings stays, as on a host
    own = {"OMP_NUM_THREADS": "1", "TRAINKIT_TIMEOUT": "60", "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", str(n), *command],
        cwd=folder,
        env={**kept, **own, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_end_with_the_test,
    )
    return Job(process, folder)
