"""Ranks that are started again while a rank 0 of before is still ending."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainkit.coordination.client import connect_store
from trainkit.coordination.server import StoreServer
from trainkit.errors import RetryableError
from trainkit.strategies.link import RankLink
from trainkit.testing import free_port
from trainkit.topology import Topology
from trainkit.waiting import Deadline


def rank(number, port):
    return Topology(
        platform="env", rank=number, world_size=2, master_addr="127.0.0.1", master_port=port
    )


def test_a_rank_that_came_to_a_store_that_closes_waits_for_the_next_one():
    port = free_port()
    ending = StoreServer(port)
    leave = threading.Barrier(2)

    def work(number):
        if number == 0:
            before = connect_store("127.0.0.1", port, "the test", Deadline(60))
            assert before.wait("join/greeting/1", 60)
            before.close()
            ending.close()
        link = RankLink.open(rank(number, port), 60)
        met = link.communicator.all_gather_object(number)
        leave.wait(60)
        link.close()
        return met

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(work, range(2))) == [[0, 1], [0, 1]]


def test_a_second_connection_to_a_rank_0_that_is_gone_is_given_up_soon(monkeypatch):
    """Not after the ten minutes that ranks have to come in the first place."""
    monkeypatch.setattr("trainkit.strategies.link._ANSWERS_AGAIN", 0.5)
    port = free_port()

    def work(number):
        link = RankLink.open(rank(number, port), 600)
        link.communicator.barrier("both")
        return link

    with ThreadPoolExecutor(2) as ranks:
        server, other = ranks.map(work, range(2))
    server.close(failed=True)
    server.store.close()
    try:
        with pytest.raises(RetryableError, match=f"{port}"):
            other.second_connection("watch")
    finally:
        other.close(failed=True)
        other.store.close()
