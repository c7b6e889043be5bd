"""One run at a time: signs of life, takeovers, and what a process does at its end."""

import gc
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from trainkit.checkpoint.save import hold as module
from trainkit.checkpoint.save.generation import Claims, claim, read_holder, refuse_overtaken
from trainkit.checkpoint.save.holder import Holder
from trainkit.checkpoint.save.lease import LeaseTimes, take_lease
from trainkit.errors import EnvironmentFaultError
from trainkit.storage import LocalStorage
from trainkit.waiting import Deadline, wait_until

QUICK = LeaseTimes(silence=600.0, renewal=0.05, patience=0.3)
"""Signs of life at short intervals, and a silence that no busy machine ever reaches."""
ELSEWHERE = "a kernel on another host"


def lease_threads():
    return [thread for thread in threading.enumerate() if thread.name == "trainkit-lease"]


def until(condition, what):
    wait_until(condition, what=what, deadline=Deadline(60.0))


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


class Elsewhere:
    """A run on another host, played by this test."""

    def __init__(self, storage, silence=600.0):
        self.storage = storage
        self.holder = replace(Holder.here(silence=silence), boot=ELSEWHERE, host="far", pid=7)
        self.generation = claim(storage, self.holder).generation
        self.count = 0

    def sign(self, name=None):
        self.count += 1
        path = f".generations/{self.generation:010d}.{name or f'{self.count:08d}'}"
        self.storage.create(path, b"")


def test_signs_of_life_take_each_others_place(storage):
    lease = take_lease(storage, QUICK)
    seen = set()

    def several():
        seen.update(Claims.seen(storage).signs[1])
        return len(seen) > 3

    until(several, "signs of life")
    assert len(Claims.seen(storage).signs[1]) <= 2
    lease.release()
    assert Claims.seen(storage).signs[1] == {"released"}
    lease.release()


def test_what_is_released_is_free_at_once(storage):
    take_lease(storage, QUICK).release()
    second = take_lease(storage, QUICK)
    assert second.claim.generation == 2
    assert storage.names(".generations")[:2] == ["0000000001", "0000000002"]
    second.release()


def test_a_lease_ends_with_its_object_and_leaves_no_thread(storage):
    lease = take_lease(storage, QUICK)
    assert len(lease_threads()) == 1
    del lease
    gc.collect()
    until(lambda: not lease_threads(), "the end of the thread")
    assert "released" in Claims.seen(storage).signs[1]


def test_leases_of_one_process_are_shared_and_the_last_one_releases(storage):
    first = take_lease(storage, QUICK)
    second = take_lease(LocalStorage(storage.url), QUICK)
    assert (first.claim.generation, second.claim.generation) == (1, 2)
    assert len(lease_threads()) == 1
    second.release()
    assert "released" not in Claims.seen(storage).signs[2]
    third = take_lease(storage, QUICK)
    first.release()
    assert third.claim.generation == 3
    until(lambda: Claims.seen(storage).signs[3], "a sign of life under the newest claim")
    third.release()
    assert Claims.seen(storage).signs[3] == {"released"}


def test_a_run_that_is_alive_is_named_and_nothing_is_touched(storage, caplog):
    other = Elsewhere(storage)
    stop = threading.Event()

    def live():
        while not stop.wait(0.02):
            other.sign()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(EnvironmentFaultError, match="in use by another run") as caught:
            take_lease(storage, QUICK)
    finally:
        stop.set()
        thread.join()
    assert "process 7 on host far, since" in str(caught.value)
    assert "read_only=True" in str(caught.value)
    assert "waiting until it ends, or has given no sign of life for 600 s" in caplog.text
    assert Claims.seen(storage).newest == 1


def test_a_run_that_ends_while_it_is_waited_for_is_followed(storage):
    other = Elsewhere(storage)
    timer = threading.Timer(0.2, lambda: other.sign("released"))
    timer.start()
    lease = take_lease(storage, replace(QUICK, patience=600.0))
    timer.join()
    assert lease.claim.generation == 2
    lease.release()


def test_a_run_on_another_host_is_taken_over_after_its_silence(storage, caplog):
    """By the holder's own measure where that is longer, and no clock of a host counts."""
    other = Elsewhere(storage, silence=1.0)
    other.sign()
    began = Deadline(1.0)
    lease = take_lease(storage, LeaseTimes(silence=0.5, renewal=0.1, patience=600.0))
    assert began.passed
    assert lease.claim.generation == 2
    assert "taken over from process 7 on host far" in caplog.text
    with pytest.raises(EnvironmentFaultError, match="has taken over from this one"):
        refuse_overtaken(storage, other.generation)
    assert [name for name in storage.names(".generations") if name.startswith("0000000001.")] == []
    lease.release()


def test_an_old_listing_of_a_network_file_system_is_not_silence(tmp_path, storage):
    """Such a mount shows a listing from its cache until this host changes the folder."""

    class Cached(LocalStorage):
        cache = None

        def names(self, folder=""):
            if folder != ".generations":
                return super().names(folder)
            self.cache = self.cache or super().names(folder)
            return self.cache

        def create(self, path, data):
            other.sign()  # the holder is alive all the time, as this shows
            self.cache = None
            super().create(path, data)

    other = Elsewhere(storage, silence=0.2)
    with pytest.raises(EnvironmentFaultError, match="is alive"):
        take_lease(Cached(tmp_path), LeaseTimes(silence=0.2, renewal=0.1, patience=0.1))
    assert other.count > 0


def test_another_rank_may_know_the_holder_for_dead(storage):
    Elsewhere(storage)
    lease = take_lease(storage, QUICK, known_dead={1})
    assert lease.claim.generation == 2
    lease.release()


def test_a_claim_that_was_cut_off_is_waited_for(storage):
    storage.make_folder(".generations")
    storage.create(".generations/0000000001", b'{"host": "fa')
    lease = take_lease(storage, LeaseTimes(silence=0.3, renewal=0.1, patience=600.0))
    assert lease.claim.generation == 2
    lease.release()


def test_who_was_taken_over_says_so_and_stops_giving_signs(storage, caplog):
    lease = take_lease(storage, QUICK)
    until(lambda: Claims.seen(storage).signs[1], "a sign of life")
    claim(storage, replace(Holder.here(), boot=ELSEWHERE, host="far"))
    until(lambda: not lease_threads(), "the end of the thread")
    assert "was taken over by another run" in caplog.text
    assert "on host far" in caplog.text
    lease.release()
    assert "released" not in Claims.seen(storage).signs[2]


def test_storage_that_fails_costs_a_warning(storage, caplog, monkeypatch):
    create = LocalStorage.create

    def refuse(self, path, data):
        raise OSError(5, "Input/output error", path)

    lease = take_lease(storage, QUICK)
    monkeypatch.setattr(LocalStorage, "create", refuse)
    until(lambda: "a sign of life could not be written" in caplog.text, "the warning")
    monkeypatch.setattr(LocalStorage, "create", create)
    until(lambda: Claims.seen(storage).signs[1], "a sign of life")
    lease.release()


PROGRAM = """
import os, signal, sys, time
from trainkit.checkpoint.save.lease import LeaseTimes, take_lease
from trainkit.storage import LocalStorage

times = LeaseTimes(silence=float(sys.argv[2]), renewal=0.05, patience=0.3)
lease = take_lease(LocalStorage(sys.argv[1]), times)
print("holds", flush=True)
{then}
"""


def program(storage, then, silence=600.0):
    code = PROGRAM.format(then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code, storage.url, str(silence)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_ends_releases(storage):
    with program(storage, "") as process:
        assert process.wait(60) == 0
    assert "released" in Claims.seen(storage).signs[1]


def test_a_child_that_was_forked_leaves_the_lease_alone(storage):
    then = """
pid = os.fork()
if pid == 0:
    lease.release()
    del lease
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
print("child ended", flush=True)
sys.stdin.read()
"""
    with program(storage, then) as process:
        assert process.stdout.readline() == "holds\n"
        assert process.stdout.readline() == "child ended\n"
        assert "released" not in Claims.seen(storage).signs[1]
        with pytest.raises(EnvironmentFaultError, match=f"process {process.pid} on host"):
            take_lease(storage, QUICK)
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_process_that_was_killed_is_followed_at_once(storage):
    with program(storage, "sys.stdin.read()") as process:
        assert process.stdout.readline() == "holds\n"
        process.kill()
        process.wait(60)
        lease = take_lease(storage, QUICK)  # far from 600 s
        assert lease.claim.generation == 2
        lease.release()


def test_a_process_that_stood_still_finds_itself_overtaken(storage):
    then = """
sys.stdin.readline()
from trainkit.checkpoint.save.generation import refuse_overtaken
try:
    refuse_overtaken(LocalStorage(sys.argv[1]), 1)
except RuntimeError as error:
    print(error, flush=True)
"""
    with program(storage, then, silence=0.5) as process:
        assert process.stdout.readline() == "holds\n"
        assert read_holder(storage, 1).pid == process.pid
        os.kill(process.pid, signal.SIGSTOP)
        lease = take_lease(storage, LeaseTimes(silence=0.5, renewal=0.1, patience=600.0))
        os.kill(process.pid, signal.SIGCONT)
        said = process.communicate("go on\n", timeout=60)[0]
        assert f"process {os.getpid()} on host" in said
        assert "has taken over from this one" in said
        lease.release()
    assert module._holds == set()
