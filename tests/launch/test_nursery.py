"""The process that starts ranks, by what it is asked and what it tells."""

import os
import signal

import pytest

from trainkit.launch.entry import Entry
from trainkit.launch.nursery import Nursery
from trainkit.processes.kernel import adopt_orphans
from trainkit.waiting import Deadline


@pytest.fixture
def nursery():
    made = Nursery.start()
    yield made
    made.close()


def end_of(nursery, pid):
    deadline = Deadline(30)
    while not deadline.passed:
        for event in nursery.events(1.0):
            if event.pid == pid:
                return event.exitcode
    return None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_right_after_the_start_is_not_lost(nursery, number):
    """The nursery ignores it, and so did each fork until it was a rank."""
    ends = []
    for _ in range(10):
        pid = nursery.spawn(Entry("program", "sleep", ("60",)), dict(os.environ), {}, forked=False)
        nursery.signal(pid, number)
        ends.append(end_of(nursery, pid))
    assert ends == [-number] * 10


def test_who_goes_on_after_it_adopts_nobody():
    """A process stays what it was: ended descendants of others would wait for it for ever."""
    before = adopt_orphans(False)
    try:
        made = Nursery.start()
        made.close()
        assert adopt_orphans(False) is False
        adopt_orphans()
        Nursery.start().close()
        assert adopt_orphans(False) is True
    finally:
        adopt_orphans(before)
