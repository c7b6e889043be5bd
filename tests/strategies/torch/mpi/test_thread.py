"""The communication thread: order, failures that C++ sees, and a deadline that names ranks."""

import threading

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from trainkit.errors import DeadlineError, PeerLostError  # noqa: E402
from trainkit.lifecycle.causes import exit_code_of, is_peer_loss  # noqa: E402
from trainkit.strategies.torch.mpi.attendance import Attendance  # noqa: E402
from trainkit.strategies.torch.mpi.thread import CommunicationThread, Job  # noqa: E402
from trainkit.strategies.torch.mpi.work import MpiWork  # noqa: E402


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def thread(store):
    made = []

    def make(timeout=60.0):
        made.append(CommunicationThread("test", timeout, Attendance(store, 0, [4, 5, 6])))
        return made[-1]

    yield make
    for one in made:
        assert one.close()


class Message:
    """Under way until somebody lets it come."""

    def __init__(self):
        self.come = threading.Event()

    def Test(self):
        return self.come.is_set()


def test_jobs_run_in_order_on_a_thread_of_their_own(thread):
    comm, seen = thread(), []
    futures = [
        comm.submit(Job(f"job {n}", lambda n=n: seen.append((n, threading.current_thread().name))))
        for n in range(50)
    ]
    for future in futures:
        future.wait()
    assert [n for n, _ in seen] == list(range(50))
    assert {name for _, name in seen} == {"trainkit-mpi-test"}


def test_a_failure_is_seen_by_who_waits_for_the_work_and_for_the_future(thread):
    """DDP's reducer waits for the future in C++, which knows of no classes but its own."""
    comm = thread()

    def fails():
        raise PeerLostError("rank 1 of this host is gone (connection closed by peer)")

    job = Job("all_reduce", fails)
    future = comm.submit(job)
    with pytest.raises(RuntimeError, match="rank 1 of this host is gone") as told:
        future.wait()
    assert is_peer_loss(told.value)
    assert exit_code_of(told.value) == 138
    with pytest.raises(PeerLostError, match="rank 1 of this host is gone"):
        MpiWork(job, future).wait()
    with pytest.raises(RuntimeError, match="rank 1 of this host is gone"):
        future.then(lambda done: done.value()).wait()


def test_nothing_runs_after_a_failure(thread):
    comm, ran = thread(), []

    def fails():
        raise ValueError("halfway")

    comm.submit(Job("first", fails))
    second = comm.submit(Job("second", lambda: ran.append(1)))
    with pytest.raises(RuntimeError, match="halfway"):
        second.wait()
    third = comm.submit(Job("third", lambda: ran.append(1)))
    with pytest.raises(RuntimeError, match="halfway"):
        third.wait()
    assert not ran


def test_messages_stay_under_way_while_collectives_run(thread):
    comm, message = thread(), Message()
    waiting = comm.submit(Job("recv", lambda: message, True, lambda: "come"))
    assert comm.submit(Job("all_reduce", lambda: "reduced")).wait() == "reduced"
    assert not waiting.done()
    message.come.set()
    assert waiting.wait() == "come"


def test_what_takes_too_long_fails_and_says_who_is_behind(thread, store):
    comm, over = thread(timeout=0.5), threading.Event()
    comm.submit(Job("barrier", lambda: None)).wait()
    store.set("begun/1", "2")
    store.set("begun/2", "1")
    future = comm.submit(Job("all_reduce of 5 torch.float32", over.wait))
    with pytest.raises(RuntimeError, match=r"waiting for rank 6 .at collective 1") as told:
        future.wait()
    assert "all_reduce of 5 torch.float32" in str(told.value)
    assert isinstance(comm.failure, DeadlineError)
    assert is_peer_loss(told.value)
    over.set()


def test_a_message_that_never_comes_fails_at_the_deadline(thread):
    comm = thread(timeout=0.3)
    future = comm.submit(Job("recv of 3 torch.float32 from 1", Message, True))
    with pytest.raises(RuntimeError, match=r"recv of 3 torch\.float32 from 1: timed out"):
        future.wait()


def test_messages_move_on_while_a_collective_waits_outside_of_mpi(thread):
    comm, message = thread(), Message()
    waiting = comm.submit(Job("send", lambda: message, True))

    def collective():
        assert comm.move_messages()
        message.come.set()
        while comm.move_messages():
            pass

    comm.submit(Job("all_reduce", collective)).wait()
    assert waiting.done()


def test_a_message_that_fails_takes_the_collective_that_waits_with_it(thread):
    comm, over = thread(), threading.Event()

    class Broken(Message):
        def Test(self):
            raise PeerLostError("rank 1 is gone")

    comm.submit(Job("send", Broken, True))

    def collective():
        comm.move_messages()
        over.wait()

    future = comm.submit(Job("all_reduce", collective))
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        future.wait()
    over.set()


def test_messages_under_way_are_awaited_at_the_end(thread):
    comm, message = thread(), Message()
    future = comm.submit(Job("send", lambda: message, True, lambda: "sent"))
    threading.Timer(0.2, message.come.set).start()
    assert comm.close()
    assert future.value() == "sent"


def test_a_failure_during_the_end_does_not_delay_it(thread):
    comm = thread()

    def fails():
        assert comm._over.wait(60)
        raise PeerLostError("rank 1 is gone")

    comm.submit(Job("barrier", fails))
    assert comm.close()


def test_what_is_queued_just_when_the_deadline_passes_fails_too(thread):
    """The thread that would take it may be in MPI for ever."""
    comm, over, began = thread(), threading.Event(), threading.Event()
    comm.submit(Job("first", lambda: began.set() or over.wait()))
    assert began.wait(60)
    jobs = comm._jobs

    class Meanwhile:
        def put(self, job):
            comm._jobs = jobs
            comm.fail(DeadlineError("first: timed out"))
            jobs.put(job)

    comm._jobs = Meanwhile()
    second = comm.submit(Job("second", lambda: None))
    assert second.done()
    with pytest.raises(RuntimeError, match="first: timed out"):
        second.value()
    over.set()


def test_a_store_that_does_not_answer_holds_no_deadline_up():
    class Silent:
        over = threading.Event()

        def clone(self):
            self.over.wait()

    attendance = Attendance(Silent(), 0, [4, 5], patience=0.1)
    attendance.tell(3)
    assert "does not answer" in attendance.behind(3)
    Silent.over.set()


def test_a_group_that_has_been_destroyed_takes_nothing(store):
    comm = CommunicationThread("test", 60.0, Attendance(store, 0, [0]))
    assert comm.close()
    with pytest.raises(RuntimeError, match="destroyed"):
        comm.submit(Job("barrier", lambda: None))
