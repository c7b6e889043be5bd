"""Signals are heard by real processes: each test runs a small program and sends it signals."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainkit.coordination import MemoryStore, StepAgreement
from trainkit.coordination.client import serve_store
from trainkit.errors import Preempted
from trainkit.lifecycle import RankMonitor
from trainkit.waiting import Deadline, wait_until

PREAMBLE = """
import os, signal, sys, time
from trainkit.errors import Preempted
from trainkit.lifecycle import RankMonitor, report
"""


class Program:
    def __init__(self, body, cwd):
        code = PREAMBLE + textwrap.dedent(body)
        self.process = subprocess.Popen(
            # Python 3.12 warns of a fork beside threads, which is just what one test is about
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def end(self):
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@pytest.fixture
def program(tmp_path):
    running = []

    def start(body):
        running.append(Program(body, tmp_path))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


LOOP = """
monitor = RankMonitor()
monitor.start()
step = 0
while not monitor.stop_now(step):
    if step == 1:
        print("ready", flush=True)
    step += 1
# One write: a log line, which another thread sends down the same pipe, cuts several apart.
sys.stdout.write(f"stopped {monitor.preempted} {monitor.time_left() <= 30}\\n")
sys.stdout.flush()
monitor.close()
sys.exit(int(monitor.exit_code))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_notice_stops_the_loop_after_a_step(program, number, code):
    run = program(LOOP)
    assert run.line() == "ready"
    run.signal(number)
    returned, output = run.end()
    assert returned == code
    assert "stopped True True" in output


def test_other_signals_can_be_notices(program):
    run = program(LOOP.replace("RankMonitor()", "RankMonitor(signals=(signal.SIGUSR1,))"))
    assert run.line() == "ready"
    run.signal(signal.SIGUSR1)
    assert run.end()[0] == 143


def test_the_users_own_handler_runs_too(program):
    run = program("signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n" + LOOP)
    assert run.line() == "ready"
    run.signal(signal.SIGTERM)
    returned, output = run.end()
    assert returned == 143
    assert "mine" in output


def test_a_process_that_polls_nothing_ends_at_once_and_says_so(program):
    run = program(
        """
        monitor = RankMonitor()
        monitor.start()
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.01)
        except Preempted as stop:
            print(stop, flush=True)
            raise
        """
    )
    assert run.line() == "ready"
    run.signal(signal.SIGTERM)
    returned, output = run.end()
    assert returned == 143
    assert "nothing new was saved" in output


LEAVER = """
from trainkit.coordination import StepAgreement
from trainkit.coordination.client import connect_store
from trainkit.waiting import Deadline

monitor = RankMonitor()
monitor.start()
store = connect_store("127.0.0.1", PORT, "rank 1", Deadline(60))
monitor.agree_with(StepAgreement(store, 1, 2, timeout=60))
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
finally:
    monitor.close()
"""


def _step_until_stopped(monitor):
    step = 0
    while not monitor.stop_now(step):
        step += 1
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_ends_before_it_asked_tells_the_others(program, number):
    store = serve_store(0, Deadline(60))
    monitor = RankMonitor()
    monitor.agree_with(StepAgreement(store, 0, 2, timeout=60))
    try:
        run = program(LEAVER.replace("PORT", str(store.port)))
        assert run.line() == "ready"
        run.signal(number)
        with pytest.raises(Preempted, match=r"nothing new was saved, since rank\(s\) 1 ended"):
            _step_until_stopped(monitor)
        assert monitor.stopped_at is None
        run.end()
    finally:
        monitor.close()
        store.close()


@pytest.fixture
def of_two():
    monitor = RankMonitor()
    monitor.agree_with(StepAgreement(MemoryStore(), 0, 2, timeout=60))
    yield monitor
    monitor.close()


def test_a_signal_within_a_wake_up_waits_for_no_lock(of_two):
    with ThreadPoolExecutor(1) as pool, of_two._lookout._stirred._cond:
        handled = pool.submit(of_two._end_where_nothing_polls, signal.SIGTERM)
        with pytest.raises(Preempted):
            handled.result(30)


def test_who_swallows_the_exception_stops_at_its_first_step(of_two):
    with pytest.raises(Preempted):
        of_two._end_where_nothing_polls(signal.SIGTERM)
    wait_until(lambda: of_two.stirred, what="the notice", deadline=Deadline(60))
    with pytest.raises(Preempted, match=r"rank\(s\) 0 ended at once"):
        of_two.stop_now(1)
    assert of_two.deserted


def test_a_second_notice_ends_at_once(program):
    run = program(
        """
        monitor = RankMonitor()
        monitor.start()
        monitor.stop_now(0)
        print("ready", flush=True)
        while not monitor.preempted:
            time.sleep(0.01)
        print("first", flush=True)
        time.sleep(1.2)  # an echo within a second would not count
        print("again", flush=True)
        while True:
            time.sleep(0.01)
        """
    )
    assert run.line() == "ready"
    run.signal(signal.SIGTERM)
    lines = [run.line(), run.line(), run.line()]
    assert lines[-1] == "again", lines
    run.signal(signal.SIGTERM)
    returned, output = run.end()
    assert returned == 143
    assert "second SIGTERM" in output


def test_closing_gives_the_signals_back(program):
    run = program(
        """
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        monitor = RankMonitor()
        monitor.start()
        monitor.close()
        after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        print(before == after, signal.set_wakeup_fd(-1))
        """
    )
    assert run.end() == (0, "True -1\n")


def test_a_forked_child_is_no_rank(program):
    """Loader workers: their signals are no notices, and they do not keep the parent from ending."""
    run = program(
        """
        monitor = RankMonitor()
        monitor.start()
        monitor.stop_now(0)
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            while True:
                time.sleep(0.01)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        survivor = os.fork()
        if survivor == 0:
            while True:
                time.sleep(0.01)
        time.sleep(0.5)  # longer than the listener takes to hear
        print(os.WTERMSIG(status), monitor.preempted, flush=True)
        monitor.close()
        os.kill(survivor, signal.SIGKILL)
        os.waitpid(survivor, 0)
        """
    )
    assert run.end() == (0, "15 False\n")


@pytest.mark.parametrize("seed", range(40))
def test_ranks_that_meet_in_every_step_stop_at_the_same_one(seed):
    """A collective in each step, a notice at a random moment on a random rank."""
    chance = random.Random(seed)
    world_size = 3
    store = MemoryStore()
    collective = threading.Barrier(world_size)
    monitors = [RankMonitor() for _ in range(world_size)]
    over = threading.Event()

    def train(monitor):
        for step in range(1, 10_000):
            collective.wait(30)
            # As CheckpointManager.step does it.
            monitor.last_step = step
            if monitor.stirred and monitor.stop_now(step):
                return step
        return None

    def notice(monitor):
        over.wait(chance.random() * 0.01)
        monitor._hear(signal.SIGTERM)

    # Some notices come before the ranks can talk about them, as while a strategy starts.
    early = chance.choice(monitors) if seed % 4 == 0 else None
    if early is not None:
        early._hear(signal.SIGTERM)
    for rank, monitor in enumerate(monitors):
        monitor.agree_with(StepAgreement(store, rank, world_size, timeout=30))
    with ThreadPoolExecutor(world_size + 1) as pool:
        trainers = [pool.submit(train, monitor) for monitor in monitors]
        if early is None:
            pool.submit(notice, chance.choice(monitors))
        stopped = [trainer.result(60) for trainer in trainers]
        over.set()
    for monitor in monitors:
        monitor.close()
    assert len(set(stopped)) == 1
    assert stopped[0] is not None


def test_a_store_that_fails_once_is_asked_again():
    class FailsOnce(MemoryStore):
        failed = False

        def set(self, key, value):
            if key.startswith("entered/") and not self.failed:
                self.failed = True
                raise ConnectionError("lost for a moment")
            super().set(key, value)

    store, monitor = FailsOnce(), RankMonitor()
    monitor.agree_with(StepAgreement(store, 0, 1, timeout=60))
    try:
        monitor._hear(signal.SIGTERM)
        stopped = next(step for step in range(10**9) if monitor.stop_now(step))
    finally:
        monitor.close()
    assert store.failed
    assert monitor.stopped_at == stopped
