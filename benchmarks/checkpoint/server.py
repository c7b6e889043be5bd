"""A real S3 server for benchmarks: the tests' own."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["s3_url"]


@contextlib.contextmanager
def s3_url() -> Iterator[str]:
    """The URL of an empty folder; credentials and endpoint are in the environment meanwhile."""
    import s3fs

    from tests.object_store import BUCKET, S3Server

    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder))
        try:
            os.environ.update(server.variables)
            s3fs.S3FileSystem().mkdir(BUCKET)
            yield f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
        finally:
            server.stop()
