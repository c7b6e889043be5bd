"""Messages and open files between ranks of a host, over real sockets."""

import os
import socket
import threading

import pytest

from trainkit.errors import DeadlineError, PeerLostError
from trainkit.strategies.mpi.channel import HostChannel
from trainkit.strategies.mpi.segments import Segment


@pytest.fixture
def channels():
    made = []

    def make(n, timeout=10.0):
        peers = [{} for _ in range(n)]
        for a in range(n):
            for b in range(a + 1, n):
                peers[a][b], peers[b][a] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        names = [f"rank {10 + index}" for index in range(n)]
        made.extend(HostChannel(index, names, peers[index], timeout) for index in range(n))
        return made[-n:]

    yield make
    for one in made:
        one.close()


def test_each_hears_all_others_in_order(channels):
    three = channels(3)
    for number in range(5):
        for one in three:
            one.send(f"{one.index} says {number}".encode())
    for number in range(5):
        for one in three:
            heard = one.receive("a word")
            others = [index for index in range(3) if index != one.index]
            assert {peer: text for peer, (text, _) in heard.items()} == {
                peer: f"{peer} says {number}".encode() for peer in others
            }


def test_something_else_is_looked_after_while_a_rank_waits(channels):
    one, other = channels(2)
    looks = []

    def meanwhile():
        looks.append(1)
        if len(looks) == 20:
            other.send(b"at last")
        return True

    one.meanwhile = meanwhile
    assert one.receive("a word") == {1: (b"at last", None)}
    other.close()
    with pytest.raises(PeerLostError, match="rank 11"):
        one.receive("a word")


def test_the_order_is_that_of_ranks_and_not_of_their_calls():
    """Found as sums of three ranks that were rounded in two ways, by who had connected first."""
    pairs = {peer: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for peer in (3, 1, 2)}
    one = HostChannel(0, [f"rank {n}" for n in range(4)], {p: a for p, (a, _) in pairs.items()}, 10)
    try:
        for peer, (_, other) in pairs.items():
            other.send(b"from %d" % peer)
        assert list(one.receive("a word")) == [1, 2, 3]
    finally:
        one.close()
        for _, other in pairs.values():
            other.close()


def test_a_segment_is_the_same_memory_in_both(channels):
    one, two = channels(2)
    own = Segment.create(8192)
    one.send(b"take", own.file)
    ((payload, file),) = two.receive("memory").values()
    assert payload == b"take"
    theirs = Segment(file, 8192)
    theirs.memory[5000] = 77
    assert own.memory[5000] == 77
    assert not os.get_inheritable(file)
    for segment in (own, theirs):
        segment.close()


def test_who_is_gone_is_named_at_once(channels):
    one, two, _ = channels(3, timeout=600.0)
    heard = []

    def wait():
        with pytest.raises(PeerLostError, match=r"rank 11 .* before it joined all_reduce of 3"):
            one.receive("all_reduce of 3")
        heard.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    two.close()
    waiting.join(10)
    assert heard
    with pytest.raises(PeerLostError, match="rank 11"):
        one.send(b"to all")


def test_a_forked_child_does_not_hide_the_end_of_its_parent(channels):
    """Loader workers outlive a rank that is killed, by seconds."""
    one, two = channels(2, timeout=60.0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        for connection in two._sockets.values():
            connection.close()  # as the kernel does, without a word
        with pytest.raises(PeerLostError, match="rank 11"):
            one.receive("a meeting")
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_who_is_late_is_named(channels):
    one, two, _ = channels(3, timeout=0.2)
    two.send(b"here")
    with pytest.raises(DeadlineError, match=r"waiting for rank 12 of this host to join a meeting"):
        one.receive("a meeting")
