import socket
import threading

import pytest

from trainkit.errors import DeadlineError, UsageError
from trainkit.launch.prerequisites import (
    await_all,
    await_file,
    await_name,
    await_port,
    check_things,
)
from trainkit.waiting import Deadline


def test_a_name_that_is_known_is_not_waited_for():
    await_name("localhost", deadline=Deadline(30))


def test_a_name_that_stays_unknown_is_told():
    with pytest.raises(DeadlineError, match=r"no-such-host\.invalid to be known to DNS"):
        await_name("no-such-host.invalid", deadline=Deadline(0.1))


def test_a_port_that_opens_late_is_found():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        opening = threading.Timer(0.2, server.listen)
        opening.start()
        await_port("127.0.0.1", port, what="the tracker", deadline=Deadline(30))
        opening.join()


def test_a_port_that_stays_shut_is_told():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        with pytest.raises(DeadlineError, match=f"the tracker at 127.0.0.1:{port}.*refused"):
            await_port("127.0.0.1", port, what="the tracker", deadline=Deadline(0.1))


def test_a_file_that_is_filled_late_is_found(tmp_path):
    file = tmp_path / "hostfile"
    file.touch()
    filling = threading.Timer(0.2, file.write_text, ["a slots=1\n"])
    filling.start()
    await_file(str(file), what="the hostfile", deadline=Deadline(30))
    filling.join()


@pytest.mark.parametrize(("text", "said"), [(None, "no such file"), ("", "it is empty")])
def test_a_file_that_stays_missing_or_empty_is_told(tmp_path, text, said):
    file = tmp_path / "hostfile"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DeadlineError, match=f"the hostfile {file} .{said}"):
        await_file(str(file), what="the hostfile", deadline=Deadline(0.1))


def test_things_of_all_kinds_are_waited_for(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    making = threading.Timer(0.2, lambda: (folder.mkdir(), file.write_text("x")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        making.start()
        port = server.getsockname()[1]
        things = [str(folder), str(file), f"127.0.0.1:{port}", "localhost", "mount:/proc"]
        check_things(things)
        await_all(things, deadline=Deadline(30))
        making.join()


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ("mount:{}", "something to be mounted at {}"),
        ("{}/none", "the path {}/none"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("no-such-host.invalid", "no-such-host.invalid to be known"),
    ],
)
def test_what_does_not_come_is_named(tmp_path, thing, said):
    with pytest.raises(DeadlineError, match=said.format(tmp_path)):
        await_all([thing.format(tmp_path)], deadline=Deadline(0.1))


@pytest.mark.parametrize(
    "thing", ["host:port", "a b", "s3://bucket", "", "a..b:80", "x" * 64, ":80"]
)
def test_what_is_no_thing_to_wait_for_is_an_error_at_once(thing):
    with pytest.raises(UsageError, match="expected /path, mount:/path, host:port or host"):
        check_things([thing])
