"""Real processes that end, and what is heard of it before the kernel is done with them."""

import os
import select
import signal
import sys
import threading

import pytest

from trainkit.processes.dying import DyingWatch


@pytest.fixture
def watch():
    try:
        watch = DyingWatch()
    except OSError as reason:
        pytest.skip(str(reason))
    watch.fileno()
    yield watch
    watch.close()


@pytest.fixture
def start(watch):
    """Starts a process that holds a slot and does what it is told by a byte."""
    living = {}

    def start(act, *, late=False):
        slot = watch.slot()
        orders, ours = os.pipe()
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                if late:
                    os.read(orders, 1)
                watch.hold(slot)
                os.write(tell, b"x")
                os.read(orders, 1)
                act()
            finally:
                os._exit(99)
        os.close(orders)
        os.close(tell)
        watch.watch(slot, pid)
        living[pid] = ours

        def go_on():
            os.write(ours, b"x")

        go_on.pid = pid
        if late:
            go_on()
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        return go_on

    yield start
    for pid, ours in living.items():
        os.close(ours)
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def end_by(number):
    # What this process has made of the signal, by faulthandler for one, its forks inherit.
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


def heard(watch, seconds=60.0):
    return watch.take() if select.select([watch], [], [], seconds)[0] else []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda: os._exit(3), 3),
        (lambda: os._exit(143), 143),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
        (lambda: end_by(signal.SIGQUIT), -signal.SIGQUIT),
    ],
)
def test_a_failure_is_heard_with_its_code(watch, start, act, code, late):
    process = start(act, late=late)
    process()
    assert heard(watch) == [(process.pid, code)]


def test_a_kill_from_outside_is_heard_of_the_right_one(watch, start):
    processes = [start(signal.pause) for _ in range(5)]
    os.kill(processes[3].pid, signal.SIGKILL)
    assert heard(watch) == [(processes[3].pid, -signal.SIGKILL)]
    os.kill(processes[0].pid, signal.SIGTERM)
    assert heard(watch) == [(processes[0].pid, -signal.SIGTERM)]


def test_a_process_with_threads_is_heard(watch, start):
    def act():
        threading.Thread(target=signal.pause, daemon=True).start()
        os.kill(os.getpid(), signal.SIGKILL)

    process = start(act)
    process()
    assert heard(watch) == [(process.pid, -signal.SIGKILL)]


def test_an_end_in_order_is_not_told(watch, start):
    process = start(lambda: os._exit(0))
    process()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    other = start(lambda: os._exit(1))
    other()
    assert heard(watch) == [(other.pid, 1)]


def test_another_program_in_its_place_is_no_end(watch, start, tmp_path):
    there = tmp_path / "there"
    program = f"import pathlib, signal; pathlib.Path({str(there)!r}).touch(); signal.pause()"
    process = start(lambda: os.execv(sys.executable, [sys.executable, "-c", program]))
    process()
    other = start(signal.pause)
    while not there.exists():
        assert heard(watch, 0.01) == []
    os.kill(other.pid, signal.SIGKILL)
    assert heard(watch) == [(other.pid, -signal.SIGKILL)]
    os.kill(process.pid, signal.SIGKILL)  # its mutex went with the first program
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert heard(watch, 0.0) == []


def test_a_place_is_used_again(watch, start):
    for code in range(1, 40):
        process = start(lambda code=code: os._exit(code))
        process()
        assert heard(watch) == [(process.pid, code)]


def test_closing_ends_its_thread_and_its_files():
    before = set(os.listdir("/proc/self/fd"))
    watch = DyingWatch()
    watch.fileno()
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(1)
    watch.watch(watch.slot(), pid)
    assert "dying" in [thread.name for thread in threading.enumerate()]
    watch.close()
    assert "dying" not in [thread.name for thread in threading.enumerate()]
    assert set(os.listdir("/proc/self/fd")) == before
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
