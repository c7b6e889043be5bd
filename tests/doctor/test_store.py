"""The checkpoint folder: real folders, real mounts, a real object store."""

import errno
import http.server
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from tests.doctor.conftest import root
from trainkit.doctor import Question, Status
from trainkit.doctor import store as subject
from trainkit.storage import LocalStorage

ONLY = ("--only", "checkpoint")


def test_a_folder_that_works(doctor, tmp_path):
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path)
    assert told.code == 0, told
    assert told.of("checkpoint")["status"] == "ok"
    speed = told.of("checkpoint-speed")
    assert speed["values"]["write"] > 0
    assert speed["values"]["read"] > 0
    assert told.of("checkpoint-space")["values"]["free"] > 0
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_yet_is_not_left(doctor, tmp_path):
    told = doctor(*ONLY, TRAINKIT_CHECKPOINT_DIR=tmp_path / "a" / "b")
    assert told.of("checkpoint")["status"] == "ok"
    assert os.listdir(tmp_path) == []


def test_no_folder_is_named(doctor):
    told = doctor(*ONLY)
    assert told.code == 0
    assert told.of("checkpoint")["status"] == "not_checked"
    assert "--checkpoint-dir" in told.of("checkpoint")["advice"]


def test_a_file_in_its_place(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path / "file")
    assert told.code == 78
    assert str(tmp_path / "file") in told.of("checkpoint")["found"]


@root
def test_a_read_only_mount(doctor, mounted, tmp_path):
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path, before=mounted(tmp_path, "ro"))
    assert told.code == 78
    found = told.of("checkpoint")
    assert found["status"] == "broken"
    assert "Read-only file system" in found["found"]
    assert "writable" in found["advice"]


@root
def test_a_folder_that_this_user_may_not_write_to(doctor, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    os.chown(folder, 65534, 65534)
    # A root that may do no more than others.
    before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, of util-linux")
    told = doctor(*ONLY, "--checkpoint-dir", folder, before=before)
    assert told.code == 78, told
    assert "Permission denied" in told.of("checkpoint")["found"]
    assert "fsGroup" in told.of("checkpoint")["advice"]


@root
def test_a_full_disk(doctor, mounted, tmp_path):
    fill = f'{{ cat /dev/zero > "{tmp_path}/filler" 2>/dev/null; true; }}'
    before = mounted(tmp_path, "size=1m", fill)
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path, before=before)
    assert told.code == 78
    found = told.of("checkpoint")
    assert os.strerror(errno.ENOSPC) in found["found"]
    assert found["advice"].startswith("It is full")


@root
def test_a_disk_that_is_too_small_for_a_checkpoint(doctor, mounted, tmp_path):
    before = mounted(tmp_path, "size=64m")
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path, "--state-size", "1GiB", before=before)
    assert told.code == 78
    assert "a checkpoint takes 1.0 GiB" in told.of("checkpoint-space")["found"]
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path, "--state-size", "32MiB", before=before)
    assert told.code == 0
    assert told.of("checkpoint-space")["status"] == "warning"


def test_time_of_a_save_against_the_grace_period(doctor, tmp_path):
    told = doctor(*ONLY, "--checkpoint-dir", tmp_path, "--state-size", "8T")
    assert told.of("checkpoint-speed")["status"] == "warning"
    assert "terminationGracePeriodSeconds" in told.of("checkpoint-speed")["advice"]


def test_local_tier(doctor, tmp_path):
    assert doctor("--only", "local-tier").of("local-tier")["status"] == "not_checked"
    told = doctor("--only", "local-tier", TRAINKIT_LOCAL_TIER=tmp_path)
    assert told.of("local-tier")["status"] == "ok"


def test_an_object_store(doctor, s3):
    told = doctor(*ONLY, "--checkpoint-dir", s3)
    assert told.code == 0, told
    assert "refuses to write over" in told.of("checkpoint")["found"]
    assert told.of("checkpoint-speed")["values"]["write"] > 0
    from trainkit.storage import open_storage

    assert open_storage(s3).tree() == {}


def test_a_bucket_that_is_not_there(doctor, s3):
    # SeaweedFS makes one where somebody writes.
    with _refusing("NoSuchBucket", 404) as endpoint:
        told = doctor(*ONLY, "--checkpoint-dir", s3, AWS_ENDPOINT_URL=endpoint)
    assert told.code == 78
    assert told.of("checkpoint")["advice"] == "Make the bucket, or correct its name."


def test_wrong_credentials_are_refused_and_not_shown(doctor, s3):
    told = doctor(*ONLY, "--checkpoint-dir", s3, AWS_SECRET_ACCESS_KEY="planted-and-wrong")
    assert told.code == 78
    assert "credentials" in told.of("checkpoint")["advice"]
    assert "planted" not in told.out + told.err


def test_credentials_in_a_url_are_refused_and_not_shown(doctor):
    url = "s3://planted-user:planted-password@bucket/x"
    told = doctor(*ONLY, "--checkpoint-dir", url)
    assert told.code == 2
    assert "planted" not in told.out + told.err
    told = doctor(*ONLY, "--only", "clock", TRAINKIT_CHECKPOINT_DIR=url)
    assert told.code == 78
    assert "credentials" in told.of("checkpoint")["found"]
    assert "planted" not in told.out + told.err


def test_a_scheme_whose_library_is_unknown(doctor):
    told = doctor(*ONLY, "--checkpoint-dir", "nothing://bucket/x")
    assert told.code == 78
    assert "nothing" in told.of("checkpoint")["found"]


def test_a_store_that_never_answers(doctor, s3):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = doctor(*ONLY, "--checkpoint-dir", s3, "--timeout", 6, AWS_ENDPOINT_URL=endpoint)
    assert told.code == 78
    (found,) = told.findings
    assert "the check checkpoint did not end within 6 s" in found["found"]
    assert "A save would hang" in found["advice"]


def test_a_clock_that_the_store_refuses(doctor, s3):
    with _refusing("RequestTimeTooSkewed") as endpoint:
        told = doctor(*ONLY, "--checkpoint-dir", s3, AWS_ENDPOINT_URL=endpoint)
    assert told.code == 78
    assert "NTP" in told.of("checkpoint")["advice"], told.out


class _refusing:
    """A store that refuses all, for one reason."""

    def __init__(self, code, status=403):
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # or a client waits for "100 Continue"

            def _refuse(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _refuse

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *raised):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Unconditional(LocalStorage):
    """Writes over what is there, as object stores without conditional requests do."""

    def create(self, path, data):
        Path(self.url, path).write_bytes(data)


class Forgetful(LocalStorage):
    """Gives back something else."""

    def read(self, path):
        return b"something else"


class Keeping(LocalStorage):
    """Lets nobody remove anything."""

    def delete(self, path):
        raise PermissionError(errno.EACCES, "Access Denied", path)


@pytest.mark.parametrize(
    ("storage", "status", "words"),
    [
        (Unconditional, Status.BROKEN, "wrote over an object"),
        (Forgetful, Status.BROKEN, "other bytes"),
        (Keeping, Status.WARNING, "cannot be removed"),
    ],
)
def test_a_store_that_breaks_its_word(storage, status, words, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "open_storage", storage)
    found = list(subject.examine("checkpoint", str(tmp_path), Question()))
    (bad,) = [one for one in found if words in one.found]
    assert bad.status is status
    assert bad.advice
