"""A server that ends as Istio's agent does."""

import http.server
import subprocess
import sys
import threading

import pytest

from trainkit.resources.istio import health, quit_sidecar

AGENT = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200 if self.path == "/healthz/ready" else 404)
    def do_POST(self):
        found = self.path == "/quitquitquit"
        if found:
            print("quit", flush=True)  # before the answer, after which a test looks for it
        self.answer(200 if found else 404)
    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
"""


@pytest.fixture
def agent():
    """The port of an agent, and the list of what it was told."""
    told = []
    names = {"print": lambda *args, **_: told.append(args[0])}
    exec(AGENT, names)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), names["Handler"])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, told
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_agent_is_found_and_told(agent):
    port, told = agent
    assert health(port) == 200
    assert quit_sidecar([port])
    assert told == ["quit"]


def test_nobody_is_there():
    assert not quit_sidecar([1])


SERVE = AGENT + 'http.server.HTTPServer(("127.0.0.1", 15020), Handler).serve_forever()'
INSIDE = """
ip link set lo up
"$0" -c "$SERVE" &
until (exec 3<>/dev/tcp/127.0.0.1/15020) 2>/dev/null; do sleep 0.1; done
"$0" -m trainkit launch "$@"
code=$?
kill %1
exit $code
"""


@pytest.mark.parametrize(
    ("program", "setting", "code", "told"),
    [
        ("true", "done", 0, True),
        ("false", "done", 1, False),
        ("false", "always", 1, True),
        ("true", "never", 0, False),
    ],
)
def test_launch_ends_the_sidecar_of_its_pod(program, setting, code, told, monkeypatch):
    inside = ["unshare", "--net", "--pid", "--fork", "--kill-child", "bash", "-c"]
    if subprocess.run([*inside, "ip link set lo up"], capture_output=True).returncode:
        pytest.skip("needs root, network namespaces and ip, to have port 15020 for itself")
    monkeypatch.setenv("SERVE", SERVE)
    monkeypatch.setenv("TRAINKIT_QUIT_SIDECAR", setting)
    line = [*inside, INSIDE, sys.executable, "--no-python", program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert ("quit" in done.stdout.splitlines()) is told
    assert ("told Istio's sidecar to end" in done.stderr) is told
