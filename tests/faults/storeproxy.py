"""A proxy on loopback between an S3 client and a real server, which plays scripts of faults.

A script belongs to one root, the first name of a key, so that many trials share one proxy. Each of
its faults says which requests it meets: an operation, a part of the key, and from the n-th
such request on how many of them.
"""

import contextlib
import http.client
import math
import re
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_LOOK = 0.1

ERRORS = {
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
    409: ("ConditionalRequestConflict", "A conflicting conditional operation is in progress."),
    412: ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
}


@dataclass
class Answer:
    """What a server says."""

    status: int
    headers: list = field(default_factory=list)
    body: bytes = b""
    length: int | None = None
    """What it says of the length of its body, where that is not true or there is no body."""


def error_answer(status, code=None):
    """An answer with an error in it, as S3 words it; the ``code`` of another status if given."""
    name, text = ERRORS[code or status]
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{name}</Code><Message>{text}'
    body += "</Message><RequestId>scripted</RequestId></Error>"
    return Answer(status, [("Content-Type", "application/xml")], body.encode())


@dataclass(frozen=True)
class Fault:
    """Requests of one kind, and what happens to them."""

    operation: str
    """``put get head list delete``, ``begin part complete abort`` of uploads, or ``any``."""
    target: str
    """Regular expression that is searched for in the key, or in the prefix of a listing."""
    action: object
    """Called with an `Exchange`."""
    first: int = 1
    count: float = 1


class Script:
    """Faults of one root, how many requests they met, and how many the server has done."""

    def __init__(self, faults):
        self.faults = list(faults)
        self.seen = [0] * len(self.faults)
        self.hits = 0
        self.done = 0
        self.listings = {}
        self._lock = threading.Lock()

    def action(self, operation, key):
        """What is to happen to a request; None lets it pass."""
        with self._lock:
            for number, fault in enumerate(self.faults):
                if fault.operation not in (operation, "any") or not re.search(fault.target, key):
                    continue
                self.seen[number] += 1
                if fault.first <= self.seen[number] < fault.first + fault.count:
                    self.hits += 1
                    return fault.action
        return None


class Exchange:
    """One request, not answered yet."""

    def __init__(self, handler, script):
        self._handler, self.script = handler, script
        self.path = handler.path

    def pass_on(self):
        """Have the server do it; its answer, which the client has not got."""
        answer = self._handler.ask(self._handler.whole_body())
        if self.script is not None:
            self.script.done += 1
        return answer

    def answer(self, answer):
        """Give the client an answer, after all that it has to say."""
        self._handler.whole_body()
        self._handler.give(answer)

    def reset(self, *, after_half=False):
        """Break the connection, by a reset and not by an end; in the middle of the body if so."""
        self._handler.break_off(after_half=after_half)

    def hang(self):
        """Say nothing until the client gives up."""
        self._handler.hang()


class Proxy:
    """Serves on a port of its own; a context manager."""

    def __init__(self, upstream):
        """Serve nothing yet.

        Args:
            upstream: URL of the real server.
        """
        parts = urlsplit(upstream)
        self.upstream = parts.hostname, parts.port
        self.ended = threading.Event()
        self._scripts = {}
        self._slowest = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextlib.contextmanager
    def playing(self, root, faults):
        """Play a script on requests below ``root`` meanwhile; gives it."""
        self._scripts[root] = script = Script(faults)
        try:
            yield script
        finally:
            del self._scripts[root]

    def slowest(self, root):
        """Seconds that the longest exchange took which no fault met, below ``root``."""
        return self._slowest.get(root, 0.0)

    def note(self, root, seconds):
        """Remember how long an exchange took that no fault met."""
        self._slowest[root] = max(seconds, self.slowest(root))

    def script(self, root):
        """The script that is being played there, if there is one."""
        return self._scripts.get(root)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that went away is what is wanted here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self._upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=120)

    def finish(self):
        self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        """Say nothing."""

    def one(self):
        """Answer one request, by the script of its root or by the server."""
        self._body = None
        began = time.monotonic()
        operation, key = self._named()
        root = key.partition("/")[0]
        script = self.server.proxy.script(root)
        action = script and script.action(operation, key)
        exchange = Exchange(self, script)
        if action is None:
            answer = exchange.pass_on()
            self.server.proxy.note(root, time.monotonic() - began)
            self.give(answer)
        else:
            action(exchange)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = one

    def whole_body(self):
        """The body, read once."""
        if self._body is None:
            self._body = self.rfile.read(self._length())
        return self._body

    def ask(self, body):
        """The server's answer."""
        # The host is signed, so it stays the one that the client sees.
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        headers["Content-Length"] = str(len(body))
        self._upstream.request(self.command, self.path, body, headers)
        response = self._upstream.getresponse()
        kept = [(k, v) for k, v in response.getheaders() if k.lower() not in _HOP]
        data = response.read()
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        return Answer(response.status, kept, data, None if length is None else int(length))

    def give(self, answer):
        """Send an answer; one that is shorter than it says ends the connection."""
        body = b"" if self.command == "HEAD" else answer.body
        length = len(answer.body) if answer.length is None else answer.length
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        if self.command != "HEAD" and len(body) < length:
            self.close_connection = True

    def break_off(self, *, after_half):
        if after_half and self._body is None:
            self.rfile.read(self._length() // 2)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Both files on the socket hold it, and the reset is sent when the last of them goes.
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def hang(self):
        self.whole_body()
        while not self.server.proxy.ended.is_set():
            if select.select([self.connection], [], [], _LOOK)[0]:
                break
        self.close_connection = True

    def _length(self):
        return int(self.headers.get("Content-Length") or 0)

    def _named(self):
        """What is asked for, and the key below the bucket."""
        parts = urlsplit(self.path)
        asked = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        if self.command == "PUT":
            return ("part" if "partNumber" in asked else "put"), key
        if self.command == "POST" and "delete" in asked:
            first = re.search(rb"<Key>([^<]+)</Key>", self.whole_body())
            return "delete", first[1].decode() if first else key
        if self.command == "POST":
            return ("begin" if "uploads" in asked else "complete"), key
        if self.command == "DELETE":
            return ("abort" if "uploadId" in asked else "delete"), key
        if self.command == "HEAD":
            return "head", key
        if "uploads" in asked or "uploadId" in asked:
            return "uploads", key or asked.get("prefix", [""])[0]
        return ("get", key) if key else ("list", asked.get("prefix", [""])[0])


always = math.inf
"""A count: every such request."""
