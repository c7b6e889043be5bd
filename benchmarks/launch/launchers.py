"""The commands that race, and one run of any of them, from start to the last process gone."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainkit.processes.table import descendants

__all__ = ["BARE", "LAUNCH", "LAUNCH_RUN", "NO_PRELOAD", "PEER", "PEER_RUN", "Running", "start"]

BARE = "limit: import torch"
LAUNCH, NO_PRELOAD, PEER = "trainkit launch", "trainkit launch --no-preload", "torchrun"
LAUNCH_RUN, PEER_RUN = "trainkit launch, trainkit.run", "torchrun, trainkit.run"

_HERE = Path(__file__).parent
_BARE_CODE = (
    "import torch, sys; from benchmarks.launch.stamps import stamp; stamp(sys.argv[1], 'met')"
)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        raise SystemExit(f"{name} is not installed: pip install trainkit[torch]")
    return found


def _command(name: str, folder: Path, flags: Sequence[str], arguments: Sequence[str]) -> list[str]:
    if name == BARE:
        return [sys.executable, "-c", _BARE_CODE, str(folder)]
    script = str(_HERE / ("with_run.py" if name in (LAUNCH_RUN, PEER_RUN) else "plain.py"))
    launcher = [_program("trainkit"), "launch"]
    if name in (PEER, PEER_RUN):
        launcher = [_program("torchrun"), "--standalone"]
    elif name == NO_PRELOAD:
        launcher.append("--no-preload")
    return [*launcher, "--nproc-per-node", "2", *flags, script, str(folder), *arguments]


@dataclass
class Running:
    """One command that runs, and the folder in which its ranks note moments."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    began: float
    """Seconds of the monotonic clock, just before it was started."""
    ended: float | None = field(default=None, init=False)

    def await_(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Whether ``condition`` came true within ``deadline`` seconds, and before the end."""
        until = time.monotonic() + deadline
        while time.monotonic() < until:
            if condition():
                return True
            if self.process.poll() is not None:
                return condition()
            time.sleep(0.02)  # what is measured are moments that ranks note, not this
        return False

    def wait(self, deadline: float) -> int | None:
        """Its exit code; None if it runs on after ``deadline`` seconds."""
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            return None
        self.ended = time.monotonic()
        return code

    def errors(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "stderr").read_text(errors="replace")


@contextmanager
def start(name: str, *flags: str, arguments: Sequence[str] = ()) -> Iterator[Running]:
    """Start one of the contenders; whatever of it is left at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as where:
        folder = Path(where)
        command = _command(name, folder, flags, arguments)
        root = str(_HERE.parent.parent)
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("TRAINKIT_", "PET_", "TORCHELASTIC_"))
        }
        environ |= {"OMP_NUM_THREADS": "1", "RANK": "0"} if name == BARE else {}
        environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "TRAINKIT_DEVICE": "cpu"}
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            began = time.monotonic()
            process = subprocess.Popen(command, env=environ, stdout=out, stderr=err)
        try:
            yield Running(folder, process, began)
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    left = [process.pid, *descendants(process.pid)]
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in left[1:]:  # torchrun leaves its ranks behind when it is killed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
