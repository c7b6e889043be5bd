"""The pipeline of device tensors, with lanes of threads in place of streams of a GPU."""

import threading
import time

import pytest

torch = pytest.importorskip("torch")

from trainkit.strategies.torch.mpi.staging import pipeline  # noqa: E402


class Threads:
    """Each copy takes ``seconds`` on a lane, which does one at a time, in order."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.log = []
        self._lanes = {"down": [], "up": []}

    def fetch(self, part, host):
        return self._begin("down", host, part)

    def store(self, host, part):
        return self._begin("up", part, host)

    def settle(self):
        for ticket in (*self._lanes["down"], *self._lanes["up"]):
            ticket.join()

    def _begin(self, lane, into, source):
        before = self._lanes[lane][-1:]

        def copy():
            for ticket in before:
                ticket.join()
            time.sleep(self.seconds)
            into.copy_(source)

        thread = threading.Thread(target=copy)
        thread.wait = thread.join
        self._lanes[lane].append(thread)
        self.log.append((lane, len(self._lanes[lane]) - 1))
        thread.start()
        return thread


def run(numel, chunk, buffers, seconds=0.0, exchange=None):
    whole = torch.arange(float(numel))
    lanes = Threads(seconds)
    hosts = [torch.full((chunk,), -1.0) for _ in range(buffers)]

    def work(host):
        lanes.log.append(("mpi", sum(kind == "mpi" for kind, _ in lanes.log)))
        time.sleep(seconds)
        host.mul_(2)

    pipeline(whole.split(chunk), hosts, lanes, exchange or work)
    lanes.settle()
    return whole, lanes.log


@pytest.mark.parametrize("buffers", [1, 2, 3, 4])
@pytest.mark.parametrize("numel", [1, 7, 8, 9, 64, 67])
def test_every_element_goes_there_and_back_once(numel, buffers):
    whole, log = run(numel, 8, buffers, seconds=0.0005)
    assert torch.equal(whole, torch.arange(float(numel)) * 2)
    assert len(log) == 3 * -(-numel // 8)


def test_the_next_part_comes_down_before_the_exchange_of_this_one():
    _, log = run(40, 8, 3)
    assert log.index(("down", 1)) < log.index(("mpi", 0)) < log.index(("up", 0))
    for k in range(4):
        assert log.index(("down", k + 1)) < log.index(("mpi", k)) < log.index(("up", k))


def test_three_things_happen_at_once():
    """12 parts in three stages of 10 ms: 140 ms where they overlap, 360 ms one by one."""
    began = time.monotonic()
    run(96, 8, 3, seconds=0.01)
    overlapped = time.monotonic() - began
    began = time.monotonic()
    run(96, 8, 1, seconds=0.01)
    one_by_one = time.monotonic() - began
    assert overlapped < 0.75 * one_by_one


def test_a_failure_of_the_exchange_comes_out():
    def fails(_):
        raise ConnectionError("the network")

    with pytest.raises(ConnectionError, match="the network"):
        run(40, 8, 3, exchange=fails)
