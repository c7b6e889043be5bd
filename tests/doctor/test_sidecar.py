"""A server that answers as Istio's sidecar does."""

import http.server
import socket
import threading

import pytest

from trainkit.doctor import Status
from trainkit.doctor.sidecar import look


@pytest.fixture
def sidecar():
    """Serve one status at /healthz/ready; gives the port."""
    servers = []

    def _sidecar(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/healthz/ready" else 404)
                self.send_header("server", "envoy")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return server.server_port

    yield _sidecar
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def nobody():
    """A port on which nobody listens, held by a socket that does not."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_nobody_answers(nobody):
    found = look([nobody], 29500)
    assert (found.status, found.values) == (Status.OK, {"present": False})


def test_one_that_is_ready(sidecar, nobody):
    port = sidecar(200)
    found = look([nobody, port], 29500)
    assert found.status is Status.WARNING
    assert found.values == {"present": True, "port": port, "ready": True}
    assert 'sidecar.istio.io/inject: "false"' in found.advice
    assert 'excludeInboundPorts: "29500"' in found.advice


def test_one_that_is_not_ready(sidecar):
    found = look([sidecar(503)], None)
    assert found.values["ready"] is False
    assert "lets no traffic through yet" in found.found


def test_another_server_on_its_port(sidecar):
    assert look([sidecar(404)], None).status is Status.OK


def test_one_that_speaks_no_http():
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        assert look([server.getsockname()[1]], None).status is Status.OK
        thread.join()


def test_the_command(doctor):
    told = doctor("--only", "sidecar")
    assert told.of("sidecar")["values"]["present"] in (True, False)
