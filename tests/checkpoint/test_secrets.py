"""No secret in a log, an error, a manifest or a command line, whatever goes wrong."""

import logging
import os
import subprocess
import sys
import traceback

import pytest

from tests.checkpoint.test_object_store import objects
from tests.object_store import ACCESS_KEY, SECRET_KEY
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.admin.exporting import export
from trainkit.checkpoint.format.catalog import step_folders
from trainkit.checkpoint.interop import export_dcp, export_torch, import_checkpoint
from trainkit.cli import main
from trainkit.cli.checkpoint import COMMANDS
from trainkit.errors import UsageError
from trainkit.storage import LocalStorage, ObjectStorage, open_storage
from trainkit.testing import free_port, requires_module

PLANTED, TOKEN = "pLanTed+word", "pLanTed-session-token"
PARTS = ("pLanTed", "AKIDpLaNT")

URLS = {
    "as in a browser": f"s3://AKIDpLaNT:{PLANTED}@bucket/run",
    "with a slash": f"s3://AKIDpLaNT:{PLANTED}/{PLANTED}@bucket/run",
    "with a hash": f"s3://AKIDpLaNT:#{PLANTED}@bucket/run",
    "with a question mark": f"s3://AKIDpLaNT:?{PLANTED}@bucket/run",
    "without a user": f"s3://:{PLANTED}@bucket/run",
    "without a bucket": f"s3://AKIDpLaNT:{PLANTED}",
    "a token alone": f"https://{PLANTED}@host/run",
    "of a file": f"file://AKIDpLaNT:{PLANTED}@host/run",
    "of a file, with a slash": f"file://AKIDpLaNT:a/{PLANTED}@host/run",
    "of an unknown scheme": f"nosuch://AKIDpLaNT:{PLANTED}@host/run",
    "no address": f"s3://[AKIDpLaNT:{PLANTED}@host/run",
    "in a chain": f"simplecache::s3://AKIDpLaNT:{PLANTED}@bucket/run",
    "one slash": f"s3:/AKIDpLaNT:{PLANTED}@bucket/run",
    "signed": f"s3://bucket/run?X-Amz-Signature={PLANTED}",
    "shared access": f"az://container/run?sv=2026&sig={PLANTED}",
    "abfs": f"abfs://container:{PLANTED}@account.dfs.core.windows.net/run",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A current folder in which nothing may appear."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert os.listdir(folder) == []


def assert_silent(text):
    for part in PARTS:
        assert part not in text


@pytest.fixture
def run(tmp_path):
    """The root of a run with one checkpoint."""
    torch = pytest.importorskip("torch")
    state = {"one": torch.nn.Linear(1, 1), "two": torch.nn.Linear(1, 1)}
    manager = CheckpointManager(
        tmp_path / "run", state, options=CheckpointOptions(background=False)
    )
    yield manager
    manager.close()


def _exported(manager, url):
    manager.save(1)
    storage = LocalStorage(manager.url)
    export(storage, step_folders(storage)[0], url, entry="one", format="safetensors")


ENTRIES = {
    "manager": lambda manager, url: CheckpointManager(url, {"a": {}}),
    "open_storage": lambda manager, url: open_storage(url),
    "ObjectStorage": lambda manager, url: ObjectStorage(url),
    "init_from": lambda manager, url: manager.restore_latest(init_from=url),
    "init_from, a file": lambda manager, url: manager.restore_latest(
        init_from=f"{url}.safetensors"
    ),
    "import_checkpoint": lambda manager, url: import_checkpoint(url, manager.url),
    "import_checkpoint to": lambda manager, url: import_checkpoint("x.safetensors", url),
    "export": _exported,
    "export_dcp": lambda manager, url: export_dcp(url, None, "new"),
    "export_dcp to": lambda manager, url: export_dcp(manager.url, None, url),
    "export_torch": lambda manager, url: export_torch(url, None, "new"),
}


@requires_module("torch")
@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_url_with_credentials_is_refused_and_not_repeated(run, entry, url, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UsageError) as caught:
        entry(run, url)
    assert_silent("".join(traceback.format_exception(caught.value)))
    error = caught.value
    while error is not None:  # also what a traceback leaves out
        assert_silent(repr(error))
        error = error.__context__
    assert_silent(caplog.text)


@requires_module("torch")
@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
@pytest.mark.parametrize("where", ["url", "checkpoint_id"])
def test_dcp_refuses_a_url_with_credentials_and_does_not_repeat_it(url, where, caplog):
    import torch
    import torch.distributed.checkpoint as dcp

    from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter

    caplog.set_level(logging.DEBUG)
    state = {"a": torch.zeros(1)}
    given = {"url": url if where == "url" else None}
    place = {"checkpoint_id": f"{url}/step-1"} if where == "checkpoint_id" else {}
    for action in (
        lambda: dcp.save(state, storage_writer=TrainkitWriter(**given), no_dist=True, **place),
        lambda: dcp.load(state, storage_reader=TrainkitReader(**given), no_dist=True, **place),
    ):
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - DCP wraps some
            action()
        assert not isinstance(caught.value, (KeyboardInterrupt, SystemExit))
        assert_silent("".join(traceback.format_exception(caught.value)))
    # torch logs a checkpoint_id by itself; that cannot be helped from here.
    for record in caplog.records:
        assert not record.name.startswith("trainkit")


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_no_command_repeats_the_credentials_of_a_url(url, tmp_path, capsys):
    root = str(tmp_path / "root")
    calls = [[command, url, "new"] for command in COMMANDS]
    calls += [
        ["diff", root, url],
        ["import", root, url],
        ["export", root, url],
        [url],
        ["ls", root, url],
    ]
    for call in calls:
        try:
            code = main(["checkpoint", *call])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert code == 2, printed
        assert_silent(printed.out + printed.err)


@pytest.mark.parametrize(
    "url",
    [
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/run",
        "memory://folder/a@b",
        "memory://host:8020/run",
        "mail@example/run",
        "a:b@c",
        "file:///with?mark/a@b:c",
    ],
)
def test_what_only_looks_like_credentials_is_opened(url, s3_server, monkeypatch):
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    open_storage(url)


ON_S3 = """
import logging, os, sys, time, traceback
logging.basicConfig(level=logging.WARNING)
logging.getLogger("trainkit").setLevel(logging.DEBUG)
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.processes.table import descendants

options = CheckpointOptions(attempts=2, pause=0.01, timeout=60.0)
state = {"weights": np.zeros(10)}
try:
    manager = CheckpointManager(sys.argv[1], state, options=options)
    if sys.argv[2]:
        os.environ["AWS_ENDPOINT_URL"] = sys.argv[2]  # the writer's
    manager.save(1)
    for pid in descendants(os.getpid()):
        end = time.monotonic() + 60
        # Empty for a moment, while the kernel puts the new program in place.
        while not (command := open(f"/proc/{pid}/cmdline").read()) and time.monotonic() < end:
            time.sleep(0.001)
        print("writer", repr(command))
    manager.wait()
    manager.restore_latest()
    print("restored")
except BaseException:
    traceback.print_exc()
"""


def on_s3(url, variables, late_endpoint=""):
    """Save and restore in another process; all that it says."""
    ended = subprocess.run(
        [sys.executable, "-c", ON_S3, url, late_endpoint],
        env={**os.environ, **variables, "AWS_MAX_ATTEMPTS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_a_save_and_a_restore_show_no_secret(s3, s3_server):
    said = on_s3(s3, s3_server.variables)
    assert "restored" in said
    (writer,) = (line for line in said.splitlines() if line.startswith("writer"))
    assert s3 in writer
    stored = b"".join(objects(s3).values()).decode(errors="replace")
    for secret in (ACCESS_KEY, SECRET_KEY, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert secret not in said
        assert secret not in stored


def test_a_refusal_shows_no_secret(s3, s3_server):
    wrong = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_SESSION_TOKEN": TOKEN,
    }
    said = on_s3(s3, {**s3_server.variables, **wrong})
    assert "NoPermissionError" in said
    assert ACCESS_KEY not in said
    assert_silent(said)


@pytest.mark.parametrize("when", ["at the start", "in the middle"])
@pytest.mark.parametrize("with_password", [False, True])
def test_a_server_that_is_away_shows_no_secret(s3, s3_server, when, with_password):
    """Also where the address of the server has a password in it."""
    away = f"http://{f'AKIDpLaNT:{PLANTED}@' if with_password else ''}127.0.0.1:{free_port()}"
    if when == "at the start":
        said = on_s3(s3, {**s3_server.variables, "AWS_ENDPOINT_URL": away})
    else:
        said = on_s3(s3, s3_server.variables, away)
        assert "writer" in said
        assert "trying again" in said
    assert "Traceback" in said
    if not with_password:  # which the store's library does not even try
        assert "Could not connect to the endpoint URL" in said
    assert ACCESS_KEY not in said
    assert SECRET_KEY not in said
    assert_silent(said)
