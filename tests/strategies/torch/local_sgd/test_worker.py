"""A worker over real sockets: what it makes of connections and servers that fail it."""

import socket
import threading
import time

import pytest

from tests.strategies.torch.local_sgd.in_process import (
    begin,
    learn,
    serving,
    together,
    weights,
    working,
)
from trainkit.errors import DeadlineError
from trainkit.strategies.torch.local_sgd import rounds
from trainkit.strategies.torch.local_sgd.frames import Kind
from trainkit.testing import free_port
from trainkit.waiting import Deadline


def cut(link):
    """Break a connection as a switch would: both sides learn of it."""
    link._socket.shutdown(socket.SHUT_RDWR)


def wait_for(condition):
    deadline = Deadline(10.0)
    while not condition():
        assert not deadline.passed
        time.sleep(0.01)


def test_servers_that_were_left_in_different_rounds_go_on_in_one():
    """All workers die in a push: it has come to the first server, and not to the second."""
    ports = [free_port(), free_port()]
    with serving(ports[0]) as first, serving(ports[1], 1) as second:
        with working(ports, 0, 1, value=1.0, size=4) as chief:
            begin(chief)
            learn(chief, 1.0)
            _, part = chief.links[0], chief._replica.delta("fp32")[0]
            chief.links[0].send(Kind.PUSH, round=0, payloads=(part,))
            wait_for(lambda: first.rounds.round == 1)
        wait_for(lambda: not first.workers and not second.workers)
        assert second.rounds.round == 0
        with working(ports, 0, 1, value=5.0, size=4) as chief:
            assert chief.is_running()
            chief.join()
            assert weights(chief) == [2.0, 2.0, 1.0, 1.0]
            learn(chief, 1.0)
            chief.synchronize(Deadline(5.0))
            assert weights(chief) == [3.0, 3.0, 2.0, 2.0]
        assert first.rounds.round == second.rounds.round == 2


def test_a_connection_that_broke_before_a_gathering_does_not_shut_the_worker_out():
    ports = [free_port(), free_port()]
    with serving(ports[0]), serving(ports[1], 1), working(ports, 0, 1, size=4) as chief:
        begin(chief)
        for link in chief.links:
            cut(link)
            assert list(chief.gather("evaluation", memoryview(b""))) == [0]
            learn(chief, 1.0)
            chief.synchronize()
        assert weights(chief) == [2.0] * 4


def test_a_connection_that_breaks_in_a_gathering_before_training_is_made_again():
    port = free_port()
    with serving(port) as server, working([port], 0) as chief, working([port], 1) as other:
        other._servers.replica = None  # no model yet
        given = []
        thread = threading.Thread(
            target=lambda: given.append(other.gather("seed", memoryview(b"b")))
        )
        thread.start()
        wait_for(lambda: 1 in server.gatherings.given)
        before = server._workers[1]
        cut(other.links[0])
        wait_for(lambda: server._workers.get(1) not in (None, before))
        given.append(chief.gather("seed", memoryview(b"a")))
        thread.join(20)
        assert [{r: bytes(v) for r, v in g.items()} for g in given] == [{0: b"a", 1: b"b"}] * 2


def test_a_value_that_was_gathered_is_not_gathered_again_after_a_connection_broke():
    """The answer was lost on its way: it is to be had again, and the next call is another one."""
    port = free_port()
    with serving(port) as server, working([port], 0) as chief, working([port], 1) as other:
        begin(chief, other)
        answers = {}

        def first():
            answers["chief"] = [chief.gather("all_reduce(sum)", memoryview(b"a"))]
            wait_for(lambda: "other" in answers)
            answers["chief"].append(chief.gather("all_reduce(sum)", memoryview(b"A")))

        def second():
            link = other.links[0]
            meta = {"call": 0, "name": "all_reduce(sum)"}
            link.send(Kind.GATHER, meta=meta, payloads=(memoryview(b"b"),))
            wait_for(lambda: server.gatherings.number == 1)
            cut(link)
            answers["other"] = [other.gather("all_reduce(sum)", memoryview(b"b"))]
            answers["other"].append(other.gather("all_reduce(sum)", memoryview(b"B")))

        together(first, second)
        expected = [{0: b"a", 1: b"b"}, {0: b"A", 1: b"B"}]
        for rank in ("chief", "other"):
            assert [{r: bytes(v) for r, v in g.items()} for g in answers[rank]] == expected


def test_an_answer_to_a_part_that_was_sent_twice_is_not_taken_for_the_next_rounds():
    port = free_port()
    with serving(port), working([port], 0) as chief, working([port], 1) as other:
        begin(chief, other)
        learn(chief, 1.0)
        learn(other, 3.0)
        thread = threading.Thread(target=chief.synchronize)
        thread.start()
        other._push()
        time.sleep(0.2)  # the round is over before the part comes again
        other.synchronize()
        thread.join()
        learn(chief, 1.0)
        learn(other, 3.0)
        together(chief.synchronize, other.synchronize)
        assert weights(chief) == weights(other) == [4.0] * 5


def test_a_server_that_comes_back_waits_for_a_slow_worker_as_long_as_rounds_take(monkeypatch):
    monkeypatch.setattr(rounds, "_RETURN", 0.1)
    port = free_port()
    with working([port], 0, connect=False) as chief, working([port], 1, connect=False) as other:
        with serving(port):
            together(lambda: chief.connect(20), lambda: other.connect(20))
            begin(chief, other)
        with serving(port):
            time.sleep(1.5)  # what a round takes here
            learn(chief, 1.0)
            learn(other, 3.0)

            def later():
                time.sleep(0.8)
                other.synchronize()

            together(chief.synchronize, later)
            assert weights(chief) == weights(other) == [2.0] * 5


def test_a_round_that_is_given_up_leaves_the_model_of_its_start():
    """Also where one of two servers has ended it: half of the next round is no model."""
    ports = [free_port(), free_port()]
    with (
        serving(ports[0]) as first,
        serving(ports[1], 1),
        working(ports, 0, size=4) as chief,
        working(ports, 1, size=4) as other,
    ):
        begin(chief, other)
        learn(chief, 1.0)
        other.links[0].close()  # so the first server ends the round, and the second waits
        wait_for(lambda: first.workers == [0])
        with pytest.raises(DeadlineError):
            chief.synchronize(Deadline(1.0))
        chief.fall_back()
        assert weights(chief) == [0.0] * 4


def test_the_end_is_told_to_a_server_also_where_the_connection_has_broken():
    ports = [free_port(), free_port()]
    with serving(ports[0]) as first, serving(ports[1], 1) as second:
        with working(ports, 0, 1, size=4) as chief:
            begin(chief)
            cut(chief.links[1])
            chief.leave(stopping=False)
        wait_for(lambda: first.over and second.over)


def test_an_old_process_of_a_rank_does_not_take_its_place_back():
    """Two pods with one index, of which the older was thought to be dead."""
    port = free_port()
    with serving(port) as server, working([port], 0) as chief, working([port], 1) as old:
        begin(chief, old)
        with working([port], 1) as new:
            thread = threading.Thread(target=new.join)
            thread.start()
            wait_for(lambda: 1 in server.rounds._joiners)
            learn(chief, 1.0)
            chief.synchronize()
            thread.join()
            learn(old, 100.0)
            with pytest.raises(Exception, match="another process"):
                old.synchronize(Deadline(5.0))
            for worker in (chief, new):
                learn(worker, 1.0)
            together(chief.synchronize, new.synchronize)
            assert weights(chief) == weights(new) == [2.0] * 5
