"""Requests and bytes that a save and a load ask of S3, trainkit's and DCP's over s3fs.

    pip install "trainkit[torch,test]"             # SeaweedFS, a real server, and s3fs
    python -m benchmarks.checkpoint.requests       # a minute or two

Counted on the wire: clients talk to a proxy in front of the server, so that it does not matter
which library sends. No times are shown: over the loopback they would be the machine's.
"""

import argparse
import collections
import contextlib
import http.client
import http.server
import os
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from benchmarks.checkpoint.states import STATES, make_model, num_bytes
from benchmarks.rounds import print_table
from tests.object_store import BUCKET, S3Server
from trainkit.checkpoint import CheckpointManager

_PER_HOP = ("connection", "transfer-encoding", "keep-alive")


class Counts:
    """What passed since ``reset``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.requests: collections.Counter[str] = collections.Counter()
        self.sent = self.received = 0

    def add(self, kind: str, sent: int, received: int) -> None:
        with self._lock:
            self.requests[kind] += 1
            self.sent += sent
            self.received += received

    def row(self) -> list[str]:
        """Number of requests, which ones, and MB both ways."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.requests.items()))
        total = str(self.requests.total())
        return [total, kinds, f"{self.sent / 1e6:.1f}", f"{self.received / 1e6:.1f}"]


def _kind(method: str, path: str) -> str:
    """A request by S3's own names, as far as they differ in price."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if method == "GET" and "list-type" in query:
        return "LIST"
    if "uploads" in query or "uploadId" in query:
        return "PUT part" if method == "PUT" else f"{method} multipart"
    return method


@contextlib.contextmanager
def counting_proxy(endpoint: str, counts: Counts) -> Iterator[str]:
    """A URL that hands every request on to ``endpoint``, and counts it."""
    host = urlsplit(endpoint).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def hand_on(self) -> None:
            body = self._body()
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _PER_HOP}
            headers["Content-Length"] = str(len(body))
            headers.pop("Expect", None)
            upstream = http.client.HTTPConnection(host, timeout=120)
            try:
                upstream.request(self.command, self.path, body=body, headers=headers)
                answer = upstream.getresponse()
                data = answer.read()
            finally:
                upstream.close()
            counts.add(_kind(self.command, self.path), len(body), len(data))
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                is_length = name.lower() == "content-length"
                if name.lower() not in _PER_HOP and not (is_length and self.command != "HEAD"):
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = hand_on

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(argv: Sequence[str] | None = None) -> None:
    """Save and load once each way, and print what it asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--state", choices=STATES, default=list(STATES)[1])
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    counts = Counts()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = S3Server(folder)
        stack.callback(server.stop)
        endpoint = server.variables["AWS_ENDPOINT_URL"]
        proxied = stack.enter_context(counting_proxy(endpoint, counts))
        os.environ.update({**server.variables, "AWS_ENDPOINT_URL": proxied})
        os.environ["TRAINKIT_OBJECT_STORE"] = "fsspec"  # by the library that DCP uses, too
        _make_bucket()
        rows = list(_measure(args.state, counts))
    print(f"{args.state}: {num_bytes(args.state) / 1e6:.1f} MB of parameters\n")
    print_table(["what", "requests", "of them", "MB sent", "MB received"], rows)


def _make_bucket() -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir(BUCKET)


def _measure(state: str, counts: Counts) -> Iterator[list[str]]:
    model = make_model(state)
    root = f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"

    def counted(what: str, action: Callable[[], object]) -> list[str]:
        counts.reset()
        action()
        return [what, *counts.row()]

    manager = CheckpointManager(f"{root}/ours", {"model": model}, keep=3)
    # The second save, as all later ones: the first finds nothing that is older.
    manager.save(1)
    manager.wait()

    def save(step: int) -> None:
        manager.save(step)
        manager.wait()

    yield counted("trainkit, save, nothing changed", lambda: save(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    yield counted("trainkit, save, all changed", lambda: save(3))
    yield counted("trainkit, load, verified", manager.restore_latest)
    manager.close()

    def dcp_save() -> None:
        writer = FsspecWriter(f"{root}/dcp")
        dcp.save({"model": model.state_dict()}, storage_writer=writer, no_dist=True)

    def dcp_load() -> None:
        reader = FsspecReader(f"{root}/dcp")
        dcp.load({"model": model.state_dict()}, storage_reader=reader, no_dist=True)

    yield counted(f"DCP {torch.__version__.partition('+')[0]} + s3fs, save", dcp_save)
    yield counted("DCP + s3fs, load", dcp_load)


if __name__ == "__main__":
    main()
