"""What stores and their libraries say goes wrong, told in one line and without secrets."""

import base64
import contextlib
import http.server
import json
import logging
import threading

import pytest

from tests.cloud_servers import ACCOUNT_KEY
from trainkit.errors import InputMissingError, NoPermissionError
from trainkit.storage import open_storage
from trainkit.storage.failures import telling_of, was_never_sent
from trainkit.testing import free_port


@pytest.fixture
def forgetful():
    """fsspec keeps file systems, and with them the credentials that they were made with."""

    def forget():
        for module, name in (("gcsfs", "GCSFileSystem"), ("adlfs", "AzureBlobFileSystem")):
            with contextlib.suppress(ImportError):
                kinds = __import__(module)
                getattr(kinds, name).clear_instance_cache()

    forget()
    yield forget
    forget()


def requests(storage):
    """Each kind of request, of an object that is not there."""
    return {
        "create": lambda: storage.create("a", b"1"),
        "read": lambda: storage.read("a"),
        "read_into": lambda: storage.read_into("a", memoryview(bytearray(1))),
        "names": storage.names,
        "tree": storage.tree,
        "size": lambda: storage.size("a"),
        "delete": lambda: storage.delete("a"),
    }


def test_a_bucket_that_is_not_there(store):
    scheme = store.partition(":")[0]
    storage = open_storage(f"{scheme}://missing-bucket/run")
    for name, request in requests(storage).items():
        if scheme == "s3" and name == "create":
            continue  # SeaweedFS makes the bucket
        if name in ("create", "read", "read_into"):
            with pytest.raises(
                InputMissingError, match=r"no such object or bucket.*missing-bucket"
            ):
                request()
        else:
            assert not request()


@pytest.fixture
def refusing(google_server, monkeypatch, forgetful):
    """A server that answers every request alike, with the status that is given."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        status = 401

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            error = {"code": self.status, "message": "Anonymous caller has no access"}
            body = json.dumps({"error": error}).encode()
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who hung up
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *arguments):
            pass

    for name, value in google_server.variables.items():
        monkeypatch.setenv(name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Refusing
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Anonymous caller has no access.*: give credentials as the store's own tools"),
        (403, "Forbidden: .*Anonymous caller has no access"),
    ],
)
def test_google_refuses(refusing, status, words, caplog):
    refusing.status = status
    for request in requests(open_storage("gs://tests/run")).values():
        with pytest.raises(NoPermissionError, match=words) as refused:
            request()
        assert "\n" not in str(refused.value)
    assert "Traceback" not in caplog.text
    caplog.set_level(logging.DEBUG, logger="gcsfs")
    with pytest.raises(NoPermissionError):
        open_storage("gs://tests/run").names()
    assert ("Traceback" in caplog.text) == (status == 401)  # who looks for it finds it


def test_azure_with_a_wrong_key_and_with_none(azure_server, monkeypatch, forgetful):
    name = "AZURE_STORAGE_CONNECTION_STRING"
    wrong = base64.b64encode(b"another-planted-value").decode()
    monkeypatch.setenv(name, azure_server.variables[name].replace(ACCOUNT_KEY, wrong))
    for request in requests(open_storage("az://tests/run")).values():
        with pytest.raises(NoPermissionError, match="failed to authenticate") as refused:
            request()
        assert "\n" not in str(refused.value)
        assert wrong not in str(refused.value)
    forgetful()
    monkeypatch.setenv(name, f"AccountKey={wrong}")
    with pytest.raises(NoPermissionError, match=r"missing required.*: give credentials") as refused:
        open_storage("az://tests/run")
    assert wrong not in str(refused.value)
    forgetful()
    monkeypatch.delenv(name)
    with pytest.raises(NoPermissionError, match=r"account_name.*: give credentials"):
        open_storage("az://tests/run")


@pytest.mark.slow  # half a minute and one and a half, which gcsfs and adlfs take to give up
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_server_that_is_away(scheme, google_server, azure_server, monkeypatch, forgetful):
    servers = {"gs": google_server, "az": azure_server}
    for name, value in servers[scheme].variables.items():
        away = value.replace(servers[scheme].url, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name, away)
    with pytest.raises(OSError, match=r"Connect call failed.*tests/run/a") as failed:
        open_storage(f"{scheme}://tests/run").create("a", b"1")
    assert failed.value.errno > 0
    assert "\n" not in str(failed.value)


class ClientConnectorError(OSError):
    """By its name as aiohttp's."""


def test_what_reached_nobody_is_known_by_what_it_came_from():
    error = RuntimeError("wrapped")
    error.__cause__ = ClientConnectorError(111, "refused")
    assert was_never_sent(error)
    assert not was_never_sent(ConnectionResetError(104, "reset"))


def test_a_connection_that_broke_may_have_sent_it_all():
    """To S3's library both are an endpoint that could not be connected to."""
    exceptions = pytest.importorskip("botocore.exceptions")

    def endpoint(cause):
        return exceptions.EndpointConnectionError(endpoint_url="http://s3", error=cause)

    assert was_never_sent(endpoint(ClientConnectorError(111, "refused")))
    assert not was_never_sent(endpoint(ConnectionResetError(104, "reset")))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(-2, "Name or service not known"), OSError, "[Errno 5] Name or service not known"),
        (RuntimeError("a\nb\nRequestId:1\nTime:2"), OSError, "[Errno 5] a b"),
        (RuntimeError("x" * 10_000), OSError, f"[Errno 5] {'x' * 400}…"),
        (KeyError(), OSError, "[Errno 5] KeyError"),
        (OSError(), OSError, "[Errno 5] OSError"),
        (ValueError("AccountName=me;AccountKey=planted/+=;x"), OSError, "AccountKey=…"),
        (PermissionError("Access Denied"), NoPermissionError, "[Errno 13] Access Denied"),
        (FileExistsError(17, "there"), FileExistsError, "there"),
        (TypeError("a bug"), TypeError, "a bug"),
    ],
)
def test_the_text_of_an_error(error, kind, text):
    with pytest.raises(kind) as told, telling_of("s3://bucket/run/a"):
        raise error
    assert type(told.value) is kind
    assert text in str(told.value)
    assert "planted/" not in str(told.value)
