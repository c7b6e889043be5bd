"""A real S3 server for tests: SeaweedFS, which honours conditional writes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trainkit.processes.kernel import die_with_parent
from trainkit.testing import free_port
from trainkit.waiting import Deadline, wait_until

__all__ = ["S3Server", "s3", "s3_server", "serving"]

ACCESS_KEY, SECRET_KEY = "planted-access-id", "planted-secret-value"
BUCKET = "tests"


class S3Server:
    """One server process in a folder; killed at the end, since it ends slowly by itself."""

    def __init__(self, folder: Path) -> None:
        """Start, and wait for the first answer.

        Args:
            folder: where all lies; space of what is deleted is not used again at once.
        """
        program = shutil.which("weed", path=str(Path(sys.executable).parent))
        assert program, 'no weed beside this Python: pip install ".[test]"'
        self._port = free_port()
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        identity = {"name": "tests", "credentials": credentials, "actions": actions}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        ports = {
            f"-{part}.port{kind}": free_port()
            for part in ("master", "volume", "filer", "s3")
            for kind in ("", ".grpc")
        }
        self._sockets = [f"seaweedfs-*-grpc-{port}.sock" for port in ports.values()]
        flags = {
            **ports,
            "-s3.port": self._port,
            "-s3.port.iceberg": 0,
            "-s3.port.lance": 0,
            "-s3.config": folder / "s3.json",
            "-s3.localSocket": folder / "s3.sock",
            "-filer.localSocket": folder / "filer.sock",
            "-ip": "127.0.0.1",
            "-ip.bind": "127.0.0.1",
            "-dir": folder,
            "-master.volumeSizeLimitMB": 64,
            "-master.telemetry": "false",
            "-volume.max": 2000,  # a soak fills some hundred of them
        }
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [program, "server", "-s3", *(f"{name}={value}" for name, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # pytest may be killed
            )
        try:
            wait_until(
                self._answers,
                what="the S3 server's first answer",
                deadline=Deadline(120),
            )
        except BaseException:
            self.stop()
            raise

    @property
    def variables(self) -> Mapping[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
        }

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pattern in self._sockets:  # it would remove them itself if it were not killed
            for path in Path("/tmp").glob(pattern):
                path.unlink(missing_ok=True)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the S3 server has ended"
        try:
            urllib.request.urlopen(self.variables["AWS_ENDPOINT_URL"], timeout=10).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return True  # it asks who we are
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's one server."""
    yield from serving(tmp_path_factory.mktemp("s3"))


def serving(folder: Path) -> Iterator[S3Server]:
    """A server with an empty bucket; stopped afterwards."""
    import s3fs

    server = S3Server(folder)
    try:
        fs = s3fs.S3FileSystem(
            key=ACCESS_KEY,
            secret=SECRET_KEY,
            endpoint_url=server.variables["AWS_ENDPOINT_URL"],
            skip_instance_cache=True,
        )
        fs.mkdir(BUCKET)  # one for all: each bucket takes volumes of its own
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder; credentials and endpoint are in the environment."""
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"
