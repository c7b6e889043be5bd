"""A server and its workers over real sockets in one process: what breaks, and what is refused."""

import socket
import struct
import time
from contextlib import suppress

import pytest
import torch

from tests.strategies.torch.local_sgd.in_process import (
    begin,
    learn,
    serving,
    together,
    weights,
    working,
)
from trainkit.errors import DeadlineError, EnvironmentFaultError, PeerLostError
from trainkit.strategies.torch.local_sgd.control_link import ControlLink
from trainkit.strategies.torch.local_sgd.frames import Kind, packed
from trainkit.strategies.torch.local_sgd.link import ServerLink
from trainkit.strategies.torch.local_sgd.shard import OuterOptions
from trainkit.strategies.torch.local_sgd.sockets import listen
from trainkit.testing import free_port
from trainkit.waiting import Deadline


def test_workers_begin_with_the_chiefs_parameters_and_share_what_they_learn():
    port = free_port()
    with serving(port), working([port], 0, value=1.0) as chief, working([port], 1) as other:
        begin(chief, other)
        assert weights(other) == [1.0] * 5
        learn(chief, 1.0)
        learn(other, 3.0)
        together(chief.synchronize, other.synchronize)
        assert weights(chief) == weights(other) == [3.0] * 5
        assert (chief.round, chief.ranks) == (1, [0, 1])


def test_more_servers_than_parameters_are_no_trouble():
    ports = [free_port() for _ in range(3)]
    with (
        serving(ports[0]),
        serving(ports[1], 1),
        serving(ports[2], 2),
        working(ports, 0, 1, value=1.0, size=2) as chief,
    ):
        begin(chief)
        learn(chief, 1.0)
        chief.synchronize()
        assert weights(chief) == [2.0, 2.0]


def test_a_connection_that_breaks_in_a_round_is_mended_and_the_part_counts_once():
    port = free_port()
    with serving(port), working([port], 0, value=1.0) as chief, working([port], 1) as other:
        begin(chief, other)
        learn(chief, 1.0)
        learn(other, 3.0)

        def broken():
            chief._push()
            # As a switch would: the server learns of it, and the part is there already.
            chief.links[0]._socket.shutdown(socket.SHUT_RDWR)
            chief.synchronize()

        def later():
            time.sleep(0.3)
            other.synchronize()

        together(broken, later)
        assert weights(chief) == weights(other) == [3.0] * 5


def test_what_comes_too_late_for_its_round_is_dropped_and_its_worker_goes_on():
    port = free_port()
    with (
        serving(port) as server,
        working([port], 0, value=1.0) as chief,
        working([port], 1) as other,
    ):
        begin(chief, other)
        other.links[0].close()  # the server takes it for lost
        learn(chief, 1.0)
        chief.synchronize()
        learn(other, 100.0)
        other.synchronize()
        assert weights(other) == weights(chief) == [2.0] * 5
        assert other.round == chief.round == server.rounds.round == 1


def test_a_worker_that_is_rounds_behind_is_told_to_come_in_anew():
    port = free_port()
    with serving(port), working([port], 0) as chief, working([port], 1) as other:
        begin(chief, other)
        other.links[0].close()
        for _ in range(2):
            learn(chief, 1.0)
            chief.synchronize()
        learn(other, 1.0)
        with pytest.raises(PeerLostError, match=r"round 0, and ps 0 at .* is at round 2"):
            other.synchronize()


def test_a_worker_that_stands_still_is_given_up_after_a_while_and_may_go_on_then():
    port = free_port()
    with (
        serving(port, patience=0.5) as server,
        working([port], 0) as chief,
        working([port], 1) as other,
    ):
        begin(chief, other)
        learn(chief, 1.0)
        began = time.monotonic()
        chief.synchronize()
        assert 0.4 < time.monotonic() - began < 10
        assert server.workers == [0]
        learn(other, 100.0)
        other.synchronize()
        assert weights(other) == weights(chief) == [1.0] * 5


def test_a_server_without_memory_gets_it_back_from_the_chief_with_the_momentum():
    port, options = free_port(), OuterOptions()
    with serving(port) as first, working([port], 0, 1, value=1.0, options=options) as chief:
        begin(chief)
        learn(chief, 1.0)
        chief.synchronize()
        before = first._held.shard.momentum.clone()
        assert torch.equal(chief.momentum["0.weight"], before)
        expected = weights(chief)
        # It is killed, and another comes in its place.
        for connection in list(first._loop.connections):
            connection.socket.shutdown(socket.SHUT_RDWR)
        first._held.shard, first._held._seed = None, {}
        first.rounds.round, first.rounds.begun = None, False
        first.rounds.members.clear()
        learn(chief, 0.0)
        chief.synchronize()
        velocity = 0.9 * before
        torch.testing.assert_close(
            chief.module.weight.detach(), torch.tensor(expected) - 0.7 * 0.9 * velocity
        )


def test_gatherings_go_by_the_workers_that_are_there():
    port = free_port()
    with serving(port), working([port], 0) as chief, working([port], 1) as other:
        given = together(
            lambda: chief.gather("before", memoryview(b"a")),
            lambda: other.gather("before", memoryview(b"bc")),
        )
        assert [{r: bytes(v) for r, v in g.items()} for g in given] == [{0: b"a", 1: b"bc"}] * 2
        begin(chief, other)
        other.links[0].close()
        assert list(chief.gather("after", memoryview(b"x"))) == [0]


def test_a_gathering_that_some_do_not_come_to_ends_at_the_deadline_and_names_them():
    port = free_port()
    with serving(port), working([port], 0) as chief, working([port], 1) as other:
        begin(chief, other)
        with pytest.raises(DeadlineError, match=r"gave up after 3 s .*worker 1"):
            chief.gather("evaluation", memoryview(b""), timeout=3.0)


def test_different_calls_in_one_gathering_are_an_error():
    port = free_port()
    with serving(port), working([port], 0) as chief, working([port], 1) as other:
        begin(chief, other)
        with pytest.raises(PeerLostError, match="same calls of ctx in the same order"):
            together(
                lambda: chief.gather("all_reduce(sum)", memoryview(b"")),
                lambda: other.gather("evaluation", memoryview(b"")),
            )


def test_all_stop_after_the_highest_step_that_one_has_entered():
    port = free_port()
    with serving(port), working([port], 0) as chief, working([port], 1) as other:
        begin(chief, other)
        links = [ControlLink(("127.0.0.1", port), rank, timeout=5.0) for rank in (0, 1)]
        assert links[1].ask(what="asked")["hold"] is False
        links[0].ask(what="hold")
        assert links[1].ask(what="asked")["hold"] is True
        links[0].ask(what="publish", entered=7)
        assert links[0].ask(what="target") | {} == {
            "hold": True,
            "target": None,
            "missing": [1],
            "over": False,
        }
        links[1].ask(what="publish", entered=9)
        assert links[0].ask(what="target")["target"] == 9
        for link in links:
            link.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b" " * 50,
        packed(Kind.HELLO, rank=0, meta={"nothing": 1}),
        packed(Kind.PUSH, rank=0, size=1 << 50),
        packed(Kind.SEED, rank=0, size=64),
        packed(
            Kind.HELLO, rank=0, meta={"server": 3, "member": True, "process": "x", "world_size": 1}
        ),
        packed(Kind.ROUND, rank=0),
        packed(Kind.JOIN, rank=0, meta={"seed": None}),
        b"\0" * 200,
    ],
    ids=["http", "fields", "huge", "stranger", "index", "answer", "early", "zeros"],
)
def test_nonsense_ends_its_own_connection_and_nobody_elses(data):
    port = free_port()
    with serving(port), working([port], 0, 1, value=1.0) as chief:
        begin(chief)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
            stranger.sendall(data)
            with suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass  # until it hangs up
        learn(chief, 1.0)
        chief.synchronize()
        assert weights(chief) == [2.0] * 5


def test_a_push_of_another_size_is_refused():
    port = free_port()
    with serving(port), working([port], 0, 1) as chief:
        begin(chief)
        chief.links[0].send(Kind.PUSH, round=0, payloads=(memoryview(b"12345678"),))
        with pytest.raises(EnvironmentFaultError, match="a push of 8 bytes, expected 20"):
            chief.links[0].receive(Kind.ROUND)


def test_a_connection_cut_in_the_middle_of_a_push_counts_for_nothing():
    port = free_port()
    with serving(port), working([port], 0, value=1.0) as chief, working([port], 1) as other:
        begin(chief, other)
        link = other.links[0]
        link._socket.sendall(packed(Kind.PUSH, rank=1, round=0, size=20) + struct.pack("<2f", 9, 9))
        link.close()
        learn(chief, 1.0)
        chief.synchronize()
        assert weights(chief) == [2.0] * 5


def test_a_port_that_is_taken_is_said_with_the_port():
    port = free_port()
    with serving(port), pytest.raises(EnvironmentFaultError, match=f"port {port}"):
        listen(port)


def test_a_server_that_is_not_there_is_named_at_the_deadline():
    port = free_port()
    link = ServerLink(2, ("127.0.0.1", port), 1, 2, "process")
    with pytest.raises(DeadlineError, match=f"worker 1 to reach ps 2 at 127.0.0.1:{port}"):
        link.connect(Deadline(0.3))
