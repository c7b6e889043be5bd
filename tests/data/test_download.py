import errno
import hashlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from trainkit.data import download as module
from trainkit.data.download import download
from trainkit.data.lock import node_lock
from trainkit.errors import (
    DataError,
    DeadlineError,
    EnvironmentFaultError,
    InputMissingError,
    NoPermissionError,
)
from trainkit.waiting import Deadline, wait_until

BODY = bytes(range(256)) * 5000
HANGS_AFTER = 60.0


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "backoff", lambda **_: itertools.repeat(0.0))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "volume" / "data.gz"


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_is_fetched_and_then_not_asked_for_again(mirror, target):
    mirror.answers["/data"] = [BODY]
    assert download([mirror.url("/data")], target) == target
    assert target.read_bytes() == BODY
    assert names(target) == ["data.gz"]
    download([mirror.url("/data")], target)
    assert mirror.asked == {"/data": 1}


@pytest.mark.parametrize("status", [403, 404, 503])
def test_the_next_mirror_is_asked_when_one_refuses(mirror, target, status):
    mirror.answers |= {"/first": [status], "/second": [BODY]}  # B069
    download([mirror.url("/first"), mirror.url("/second")], target)
    assert target.read_bytes() == BODY
    assert mirror.asked == {"/first": 1, "/second": 1}


def test_all_refusals_become_one_error_with_the_alternatives(mirror, target):
    mirror.answers |= {"/first": [403], "/second": [404]}
    with pytest.raises(InputMissingError) as caught:
        download([mirror.url("/first"), mirror.url("/second")], target, advice="Use --data-dir.")
    said = str(caught.value)
    assert f"{mirror.url('/first')}: HTTP 403 Forbidden" in said
    assert f"{mirror.url('/second')}: HTTP 404 Not Found" in said
    assert said.endswith("Use --data-dir.")
    assert caught.value.exit_code == 66
    assert mirror.asked == {"/first": 1, "/second": 1}  # these answers will not change
    assert names(target) == []


def test_a_mirror_that_may_come_back_is_asked_again(mirror, target):
    mirror.answers |= {"/busy": [503, 503, BODY], "/gone": [404]}
    download([mirror.url("/busy"), mirror.url("/gone")], target)
    assert target.read_bytes() == BODY
    mirror.answers["/busy"] = [503]
    with pytest.raises(InputMissingError, match="HTTP 503"):
        download([mirror.url("/busy")], target.with_name("other"))
    assert mirror.asked["/busy"] == 6


def stop_in_the_middle(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY[:1000])


def test_a_body_that_is_cut_off_is_not_taken_for_the_file(mirror, target):
    mirror.answers |= {"/short": [stop_in_the_middle], "/whole": [BODY]}
    download([mirror.url("/short"), mirror.url("/whole")], target)
    assert target.read_bytes() == BODY
    with pytest.raises(InputMissingError, match="sent 1,000 of 1,280,000 bytes"):
        download([mirror.url("/short")], target.with_name("other"))
    assert names(target) == ["data.gz"]


def test_nobody_listening_is_a_refusal(target):
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        url = f"http://localhost:{unused.getsockname()[1]}/data"
        with pytest.raises(InputMissingError, match="refused"):
            download([url], target)
    with pytest.raises(InputMissingError, match="no URL given"):
        download([], target)


def test_checksums_are_checked(mirror, target):
    good, bad = hashlib.sha256(BODY).hexdigest(), "0" * 64
    mirror.answers["/data"] = [BODY]
    with pytest.raises(DataError, match=f"expected sha256 {bad}, found {good}") as caught:
        download([mirror.url(f"/data#sha256={bad}")], target)
    assert caught.value.exit_code == 65
    assert names(target) == []
    download([mirror.url(f"/data#sha256={bad}"), mirror.url(f"/data#sha256={good}")], target)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("fragment", ["md5=00", "sha256=", "sha256=" + "g" * 64])
def test_what_is_no_checksum_is_refused(target, fragment):
    with pytest.raises(DataError, match="expected #sha256= and 64 hexadecimal digits"):
        download([f"https://host.invalid/data#{fragment}"], target)


def test_a_file_that_fails_its_check_does_not_get_its_name(mirror, target):
    def check(path):
        assert path.read_bytes() == BODY
        raise DataError("not what it says")

    mirror.answers["/data"] = [BODY]
    with pytest.raises(DataError, match="damaged: not what it says"):
        download([mirror.url("/data")], target, check=check)
    assert names(target) == []


def test_passwords_and_signatures_are_not_shown(mirror, target, caplog):
    url = mirror.url("/data?signature=secret").replace("localhost", "user:secret@localhost")
    with pytest.raises(InputMissingError) as caught:
        download([url], target)
    assert "/data" in str(caught.value)
    assert "secret" not in str(caught.value) + caplog.text


def test_progress_is_logged(mirror, target, caplog, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_EVERY", 0.0)
    mirror.answers["/data"] = [BODY]
    with caplog.at_level(logging.INFO):
        download([mirror.url("/data")], target)
    assert "1.0 MB of 1.3 MB (82 %)" in caplog.text


FETCH = "import sys, pathlib; from trainkit.data.download import download; "
FETCH += "print('here', flush=True); download([sys.argv[1]], pathlib.Path(sys.argv[2]), timeout=60)"


def fetcher(url, target):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, url, str(target)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_one_process_of_a_node_fetches_and_the_others_wait(mirror, target):
    waiting = threading.Event()

    def answer_when_all_are_there(handler):
        assert waiting.wait(HANGS_AFTER)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY)

    mirror.answers["/data"] = [answer_when_all_are_there]
    ranks = [fetcher(mirror.url("/data"), target) for _ in range(3)]
    for rank in ranks:
        with rank.stdout:
            assert rank.stdout.readline() == b"here\n"
    wait_until(
        lambda: mirror.asked["/data"] == 1, what="the first rank", deadline=Deadline(HANGS_AFTER)
    )
    waiting.set()
    assert [rank.wait(HANGS_AFTER) for rank in ranks] == [0, 0, 0]
    assert mirror.asked == {"/data": 1}
    assert names(target) == ["data.gz"]


def test_a_process_killed_in_the_middle_leaves_nothing_under_the_name(mirror, target):
    killed = threading.Event()

    def half_then_wait(handler):
        stop_in_the_middle(handler)
        handler.wfile.flush()
        assert killed.wait(HANGS_AFTER)

    mirror.answers["/data"] = [half_then_wait, BODY]
    rank = fetcher(mirror.url("/data"), target)
    wait_until(
        lambda: list(target.parent.glob(".*.part")), what="half", deadline=Deadline(HANGS_AFTER)
    )
    rank.kill()
    rank.communicate()
    killed.set()
    assert not target.exists()
    download([mirror.url("/data")], target, timeout=HANGS_AFTER)  # the lock died with its holder
    assert target.read_bytes() == BODY
    (partial,) = target.parent.glob(".*.part")  # it might be another node's, so it may stay …
    target.unlink()
    os.utime(partial, (time.time() - 7200,) * 2)
    download([mirror.url("/data")], target)
    assert names(target) == ["data.gz"]  # … until nobody can still be writing it


def test_waiting_has_a_deadline_and_names_who_holds_the_lock(target):
    target.parent.mkdir()
    with node_lock(target, Deadline(1.0)), pytest.raises(DeadlineError) as caught:
        download(["https://host.invalid/data"], target, timeout=0.05)
    assert f"pid {os.getpid()} on {socket.gethostname()}" in str(caught.value)
    assert str(target) in str(caught.value)
    assert names(target) == []


def test_faults_of_the_disk_name_the_folder(mirror, target, monkeypatch):
    mirror.answers["/data"] = [BODY]
    target.parent.touch()
    with pytest.raises(EnvironmentFaultError, match="cannot be put into"):
        download([mirror.url("/data")], target)
    target.parent.unlink()

    def fail(number):
        def raise_it(*_):
            raise OSError(number, os.strerror(number))

        return raise_it

    monkeypatch.setattr(module.os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(EnvironmentFaultError, match="No space left on device") as caught:
        download([mirror.url("/data")], target)
    assert caught.value.exit_code == 78
    monkeypatch.setattr(module.os, "fsync", fail(errno.EACCES))
    with pytest.raises(NoPermissionError, match=r"cannot be written \(Permission denied"):
        download([mirror.url("/data")], target)
    assert names(target) == []
