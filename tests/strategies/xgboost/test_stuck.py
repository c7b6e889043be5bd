"""A thread that is waited for and has gone; here it is one of ours, that Python does not know."""

import _thread
import contextlib
import threading

import pytest

from trainkit.strategies.xgboost import stuck
from trainkit.strategies.xgboost.stuck import StuckWatch
from trainkit.waiting import Deadline, wait_until

pytestmark = pytest.mark.skipif(not stuck._tasks(), reason="needs /proc")


class Watched:
    """A watch, a thread that it takes for XGBoost's, and what it did."""

    def __init__(self):
        self.answered, self.ended = threading.Event(), threading.Event()
        self.goes = threading.Event()
        started = threading.Event()
        self.watch = StuckWatch()
        with self.watch.connecting():
            _thread.start_new_thread(lambda: (started.set(), self.goes.wait()), ())
            assert started.wait(60)
        self.watch.start(self.answered.set, self.ended.set)

    @contextlib.contextmanager
    def call(self):
        entered = self.watch.enter()
        try:
            yield
        finally:
            self.watch.leave(entered)

    @property
    def watches(self):
        return any(thread.name == "trainkit-stuck" for thread in threading.enumerate())


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(stuck, "_PATIENCE", 0.5)
    monkeypatch.setattr(stuck, "_EVERY", 0.01)
    it = Watched()
    yield it
    it.goes.set()
    it.watch.stop()
    over(it)


def over(watched):
    wait_until(lambda: not watched.watches, what="the watch to end", deadline=Deadline(60))


def test_a_call_that_goes_on_without_it_is_ended(watched):
    with watched.call(), watched.call():
        watched.goes.set()
        assert watched.answered.wait(60)
        assert watched.ended.wait(60)


def test_as_long_as_it_is_there_nothing_is_done(watched):
    with watched.call():
        assert not watched.ended.wait(1.0)
    assert not watched.answered.is_set()
    assert watched.watches


def test_a_call_that_raises_is_left_alone(watched):
    def call():
        with watched.call():
            watched.goes.set()
            assert watched.answered.wait(60)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        call()
    over(watched)
    assert not watched.ended.is_set()


def test_in_no_call_nothing_is_ended(watched):
    """As where a script has closed the connections itself, and trains by itself later on."""
    watched.goes.set()
    over(watched)
    with watched.call():
        assert not watched.ended.wait(1.0)
    assert watched.answered.is_set()


def test_calls_of_other_threads_do_not_count(watched):
    done = threading.Event()

    def other():
        with watched.call():
            done.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    watched.goes.set()
    over(watched)
    done.set()
    thread.join()
    assert not watched.ended.is_set()


def test_once_training_has_raised_nothing_is_ended(watched):
    with watched.call():
        watched.watch.stop()
        watched.goes.set()
        assert not watched.ended.wait(1.0)


def test_where_no_thread_was_started_nothing_is_watched():
    watch = StuckWatch()
    with watch.connecting():
        pass
    watch.start(lambda: None, lambda: None)
    assert not any(thread.name == "trainkit-stuck" for thread in threading.enumerate())
    watch.stop()
