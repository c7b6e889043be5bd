"""The store of our own, between real connections."""

import contextlib
import socket
import struct
import threading

import pytest

from trainkit.coordination import Communicator
from trainkit.coordination.client import connect_store, serve_store
from trainkit.coordination.frames import HELLO
from trainkit.errors import DeadlineError, EnvironmentFaultError, RetryableError
from trainkit.waiting import Deadline


@pytest.fixture
def served():
    store = serve_store(0, Deadline(30))
    yield store
    store.close()


@pytest.fixture
def connect(served):
    with contextlib.ExitStack() as stack:

        def another():
            store = connect_store("localhost", served.port, "rank 1", Deadline(30))
            stack.callback(store.close)
            return store

        yield another


def raw(served):
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    assert connection.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
    return connection


def test_all_connections_see_the_same_values(served, connect):
    one, other = connect(), connect()
    one.set("key", b"value" * 100_000)
    assert other.get("key") == served.get("key") == b"value" * 100_000
    assert [s.add("n", 1) for s in (one, other, served)] == [1, 2, 3]


def test_a_wait_ends_as_the_key_comes_and_holds_nobody_else_up(served, connect):
    waiter, found = connect(), []
    waiting = threading.Thread(target=lambda: found.append(waiter.wait("late", 60)))
    waiting.start()
    for number in range(50):
        served.add("others", 1)
        assert served.get("others") == str(number + 1).encode()
    served.set("late", b"")
    waiting.join(30)
    assert found == [True]


def test_waits_of_one_key_end_together_and_others_go_on(served, connect):
    stores, found = [connect() for _ in range(8)], []

    def wait(store, key):
        found.append((key, store.wait(key, 1 if key == "never" else 60)))

    threads = [
        threading.Thread(
            target=lambda s=s, k=k: found.append((k, s.wait(k, 1 if k == "never" else 60)))
        )
        for s, k in zip(stores, ["late"] * 6 + ["never"] * 2, strict=True)
    ]
    for thread in threads:
        thread.start()
    served.set("late", b"1")
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [("late", True)] * 6 + [("never", False)] * 2


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: rank-0\r\n\r\n",
        HELLO + struct.pack(">I", 1 << 31),
        HELLO + struct.pack(">IBH", 3, 9, 0),
        HELLO + struct.pack(">IBH", 3, 1, 500),
        HELLO + struct.pack(">IBH", 4, 4, 0) + b"x",
    ],
)
def test_what_is_no_client_is_hung_up_on_and_disturbs_nobody(served, connect, words):
    with raw(served) as stranger:
        stranger.sendall(words)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    connect().set("key", b"1")
    assert served.get("key") == b"1"


def test_requests_that_come_in_pieces_or_at_once_are_answered_in_order(served):
    from trainkit.coordination.frames import Wanted, pack_request, read_reply

    words = HELLO + b"".join(
        [
            pack_request(Wanted.SET, "a", b"1"),
            pack_request(Wanted.WAIT, "a", b"5"),
            pack_request(Wanted.WAIT, "never", b"0.01"),
            pack_request(Wanted.GET, "a", b""),
            pack_request(Wanted.GET, "nothing", b""),
        ]
    )
    for step in (1, 7, len(words)):
        with raw(served) as client:
            for start in range(0, len(words), step):
                client.sendall(words[start : start + step])
            assert [read_reply(client) for _ in range(5)] == [b"", b"", None, b"1", None]


def test_another_server_at_that_port_is_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def speak():
            for _ in range(2):  # the first only looks whether somebody listens
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"220 mail.example ESMTP ready\r\n")
                    connection.recv(64)

        speaker = threading.Thread(target=speak)
        speaker.start()
        with pytest.raises(EnvironmentFaultError, match="not the store of a trainkit rank 0"):
            connect_store("127.0.0.1", port, "rank 1", Deadline(30))
        speaker.join(30)


def test_a_taken_port_is_named(served):
    with pytest.raises(EnvironmentFaultError, match=f"port {served.port}: it is in use by process"):
        serve_store(served.port, Deadline(30))


def test_nobody_there_is_named_after_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DeadlineError, match=f"rank 3 to reach the master at 127.0.0.1:{port}"):
        connect_store("127.0.0.1", port, "rank 3", Deadline(0.1))


def test_a_lost_store_is_retryable(served, connect):
    client = connect()
    served.close()
    with pytest.raises(RetryableError, match=f"localhost:{served.port} is lost"):
        client.get("key")


def test_a_communicator_over_it_gathers(served, connect):
    stores, found = [served, connect(), connect()], {}

    def work(rank):
        found[rank] = Communicator(stores[rank], rank, 3, timeout=60).all_gather_object(rank * 2)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {rank: [0, 2, 4] for rank in range(3)}
