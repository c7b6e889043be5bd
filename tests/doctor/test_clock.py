"""Clocks of servers that are wrong by a known time."""

import email.utils
import http.server
import threading
import time

import pytest

from trainkit.doctor import Status
from trainkit.doctor.clock import endpoint_of, judge, skew_by_http

ONLY = ("--only", "clock")


@pytest.fixture
def dated():
    """A server whose clock is so many seconds ahead, and that refuses what it is asked."""
    servers = []

    def _dated(ahead, status=403):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response_only(status)
                if ahead is not None:
                    date = email.utils.formatdate(time.time() + ahead, usegmt=True)
                    self.send_header("Date", date)
                self.end_headers()

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield _dated
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_skew(dated, ahead, status):
    skew, accuracy = skew_by_http(dated(ahead, status))
    assert abs(skew + ahead) <= accuracy + 0.01


def test_a_server_that_gives_no_date(dated):
    with pytest.raises(ValueError, match="no date"):
        skew_by_http(dated(None))


@pytest.mark.parametrize(
    ("skew", "accuracy", "status"),
    [
        (2.4, 0.5, Status.OK),
        (-2.4, 0.5, Status.OK),
        (2.6, 0.5, Status.WARNING),
        (-599.0, 0.5, Status.WARNING),
        (601.0, 0.5, Status.BROKEN),
        (700.0, 699.0, Status.OK),
    ],
)
def test_judgement(skew, accuracy, status):
    assert judge(skew, accuracy, "x").status is status


def test_the_command_against_a_store_with_another_time(doctor, dated):
    variables = {"AWS_ENDPOINT_URL": dated(1000)}
    told = doctor(*ONLY, "--checkpoint-dir", "s3://bucket/x", **variables)
    assert told.code == 78
    found = told.of("clock")
    assert found["values"]["skew"] == pytest.approx(-1000, abs=5)
    assert "behind that of 127.0.0.1" in found["found"]


def test_against_a_real_store(doctor, s3):
    assert doctor(*ONLY, "--checkpoint-dir", s3).of("clock")["status"] == "ok"


def test_nothing_to_compare_with(doctor, tmp_path):
    assert "own disk" in doctor(*ONLY, "--checkpoint-dir", tmp_path).of("clock")["found"]
    assert doctor(*ONLY).of("clock")["status"] == "not_checked"
    variables = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    told = doctor(*ONLY, "--checkpoint-dir", "s3://b/x", **variables)
    assert (told.code, told.of("clock")["status"]) == (0, "not_checked")


@pytest.mark.parametrize(
    ("url", "environ", "endpoint"),
    [
        ("/path", {}, None),
        ("file:///path", {}, None),
        ("s3://b/x", {}, "https://s3.amazonaws.com"),
        ("s3://b/x", {"AWS_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com"),
        ("s3://b", {"AWS_ENDPOINT_URL_S3": "http://a", "AWS_ENDPOINT_URL": "http://b"}, "http://a"),
        ("gs://b/x", {}, "https://storage.googleapis.com"),
        ("gs://b/x", {"STORAGE_EMULATOR_HOST": "h:1"}, "http://h:1"),
        ("az://c/x", {}, None),
        ("az://c/x", {"AZURE_STORAGE_ACCOUNT_NAME": "a"}, "https://a.blob.core.windows.net"),
    ],
)
def test_endpoints(url, environ, endpoint):
    assert endpoint_of(url, environ) == endpoint
