"""Clients of an object store through a proxy, and the oracle of a root in one."""

import contextlib
import dataclasses
import json
import uuid

from tests.faults.oracle import QUICK, Oracle, bits, empty_state
from tests.faults.storeproxy import Proxy
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.admin.cleaning import find_leftovers
from trainkit.config import set_environ
from trainkit.storage import obstore, open_storage

PATIENT = dataclasses.replace(QUICK, lease=60.0, renewal=20.0, attempts=2, pause=0.05)


@contextlib.contextmanager
def client(variables, upstream, read_timeout=2.0, library="fsspec"):
    """A proxy, and clients of this process that go through it; short limits and small parts.

    Args:
        variables: that a client of the real server needs.
        upstream: URL of that.
        read_timeout: seconds after which a request is given up.
        library: "auto" for obstore, behind which s3fs stands in; "fsspec" for s3fs alone.
    """
    import fsspec
    import s3fs

    real_options = obstore.client_options

    def short_options(bucket, variables):
        options = real_options(bucket, variables)
        options["client_options"] |= {"timeout": f"{read_timeout}s", "connect_timeout": "5s"}
        options["retry_config"] = {"max_retries": 1}
        return options

    pipe_file = s3fs.S3FileSystem._pipe_file
    kept = s3fs.S3FileSystem.retries, pipe_file.__defaults__
    with Proxy(upstream) as proxy:
        place = {"AWS_ENDPOINT_URL": proxy.url, "TRAINKIT_OBJECT_STORE": library}
        set_environ({**variables, **place})
        obstore.client_options = short_options
        s3fs.S3FileSystem.retries = 2
        # From two parts of 5 MiB on, the least that a server takes, where it is 50 MiB otherwise.
        pipe_file.__defaults__ = (5 << 20, *kept[1][1:])
        fsspec.config.conf["s3"] = {
            "config_kwargs": {
                "read_timeout": read_timeout,
                "connect_timeout": 5.0,
                "max_pool_connections": 64,
                "retries": {"mode": "standard", "total_max_attempts": 2},
            }
        }
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield proxy
        finally:
            obstore.client_options = real_options
            s3fs.S3FileSystem.retries, pipe_file.__defaults__ = kept
            del fsspec.config.conf["s3"]
            s3fs.S3FileSystem.clear_instance_cache()


class StoreOracle(Oracle):
    """An oracle of a root in an object store."""

    def __init__(self, bucket, *, world, size):
        super().__init__("/", keep=2, world=world, size=size)
        self.name = uuid.uuid4().hex[:12]
        self.root = f"s3://{bucket}/{self.name}"

    def orphans(self):
        """See ``Oracle.orphans``."""
        storage = open_storage(self.root)
        there = {path for path in storage.tree() if not path.startswith((".gen", ".quar"))}
        for path in [path for path in there if path.endswith("/MANIFEST.json")]:
            folder = path.partition("/")[0]
            listed = json.loads(storage.read(path))["files"]
            there -= {path, *(f"{folder}/{name}" for name in listed)}
        return [f"I6: nobody accounts for {path}" for path in sorted(there)]

    def uploads(self, remove):
        """What is wrong with uploads once `gc` has been there, which removes by ``remove``."""
        storage = open_storage(self.root)
        for leftover in find_leftovers(storage, older_than=0.0):
            remove(storage, leftover)
        return [f"I6: gc leaves an upload of {upload.path}" for upload in storage.uploads()]

    def now(self):
        """What is wrong with what a reader restores now, which claims nothing."""
        options = dataclasses.replace(PATIENT, read_only=True)
        state = empty_state(self.size)
        manager = CheckpointManager(self.root, state, options=options)
        return self._judged([(manager.restore_latest(), state["table"].get("token"), bits(state))])
