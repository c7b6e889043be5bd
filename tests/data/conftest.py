import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainkit.config import set_environ


class Mirror:
    """A web server whose every answer the test decides.

    ``answers[path]`` is a list: a status (int), the whole body (bytes), or what to call with
    the handler. The last one stays.
    """

    def __init__(self):
        self.answers = {}
        self.asked = Counter()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.asked[self.path] += 1
                answers = mirror.answers.get(self.path, [404])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if callable(answer):
                    answer(self)
                elif isinstance(answer, int):
                    self.send_error(answer)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def url(self, path):
        return f"http://localhost:{self.server.server_port}{path}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost")
    server = Mirror()
    yield server
    server.close()


@pytest.fixture(scope="session")
def torchvision():
    """Imported, which sets a variable for the rest of the process; it is no test's leak."""
    pytest.importorskip("torchvision")
    yield
    set_environ({"TORCHINDUCTOR_CACHE_DIR": None})
