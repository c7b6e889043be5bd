"""Signals for the launcher, for one rank and for all: exit code, report, and nothing left.

Each is done three times, twenty by `make soak`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.conftest import PLAIN, TRAINING
from trainkit.testing import requires_root
from trainkit.waiting import Deadline, wait_until

TWO = ("--nproc-per-node", 2)
NOTICES = {"TRAINKIT_PREEMPTION_SIGNALS": "SIGTERM,SIGUSR1"}

GRANDCHILD = "subprocess.Popen(['sh', '-c', 'sleep 1000; true'], start_new_session=True)\n"
"""In a session of its own: no signal to a group reaches it."""

ENDLESS = TRAINING.replace("import torch", "import subprocess, sys, torch", 1).replace(
    '    print("began"', f"    {GRANDCHILD}    print('pid', ctx.rank, os.getpid(), flush=True)\n"
    '    print("began"', 1
)  # fmt: skip
"""Trains until it is stopped, if STEPS are many enough."""

LOOP = PLAIN + (
    f"import subprocess\n{GRANDCHILD}"
    "print('pid', rank, os.getpid(), flush=True)\n"
    "while True: meet()\n"
)
"""Knows nothing of trainkit, and handles no signal."""

STUBBORN = PLAIN + (
    "import signal, time, subprocess\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    f"{GRANDCHILD}"
    "print('ready', flush=True)\n"
    "time.sleep(1000)\n"
)


def pid_of(one, rank):
    one.await_line(f"pid {rank} ")
    return int(one.out.split(f"pid {rank} ")[-1].split()[0])


def send(one, whom, number):
    """Send a signal to the launcher, to a rank by its number, or to both and all ranks."""
    if whom in ("launcher", "all"):
        one.process.send_signal(number)
    for rank in (0, 1) if whom == "all" else (whom,) if isinstance(whom, int) else ():
        os.kill(pid_of(one, rank), number)


def steps(one, rank):
    """Steps that a rank says it has done."""
    words = [line.split() for line in one.out.splitlines() if f"step {rank} " in line]
    return [int(word[-1]) for word in words]


def message(path):
    """What the second line of a termination message says."""
    return json.loads(path.read_text().splitlines()[1])


@pytest.fixture
def train(launch, tmp_path):
    """Start a training of two ranks, with a checkpoint folder of its own."""

    def start(number, *flags, script=ENDLESS, **environ):
        environ = {"STEPS": "100000", "PAUSE": "0.01", "EVERY": "100000"} | environ
        folder = tmp_path / f"ckpt{number}"
        log = tmp_path / f"message{number}"
        return launch(
            *(*TWO, *flags),
            script=script,
            TRAINKIT_CHECKPOINT_DIR=str(folder),
            TRAINKIT_TERMINATION_LOG=str(log),
            **environ,
        )

    return start


@pytest.mark.parametrize(
    ("whom", "number", "environ", "code"),
    [
        ("launcher", signal.SIGTERM, {}, 143),
        ("one rank", signal.SIGTERM, {}, 143),
        ("all", signal.SIGTERM, {}, 143),
        ("launcher", signal.SIGINT, {}, 130),
        ("either", signal.SIGUSR1, NOTICES, 143),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_notice_is_saved_by_all_after_one_step(train, repeat, whom, number, environ, code):
    def trial(n):
        one = train(n, **environ)
        one.await_line("step 0 3")
        one.await_line("step 1 3")
        chosen = {"one rank": n % 2, "either": ("launcher", 0, 1)[n % 3]}
        send(one, chosen.get(whom, whom), number)
        assert one.wait() == code, one.err
        last = steps(one, 0)[-1]
        assert steps(one, 1)[-1] == last
        assert f"saved step {last}" in one.err

    repeat(trial)


def test_ranks_that_stop_together_have_the_grace_period_for_it(launch, tmp_path):
    """One is done sooner than the other, which flushes its logs, say."""
    done = tmp_path / "done"
    script = PLAIN + (
        "import time\nmeet()\n"
        f"if rank == 1:\n    time.sleep(2)\n    open({str(done)!r}, 'w').close()\n"
        "sys.stdout.flush()\nos._exit(143)\n"
    )
    one = launch(*TWO, script=script)
    assert one.wait() == 143, one.err
    assert done.exists()


@pytest.mark.parametrize(
    ("whom", "number", "code", "said"),
    [
        ("launcher", signal.SIGTERM, 143, ""),
        ("launcher", signal.SIGINT, 130, ""),
        ("all", signal.SIGTERM, 143, ""),
        (1, signal.SIGTERM, 143, "was stopped: ended by SIGTERM (15)"),
        (1, signal.SIGKILL, 137, "failed first: ended by SIGKILL (9)"),
    ],
    ids=lambda value: getattr(value, "name", "" if " " in str(value) else str(value)),
)
def test_a_script_without_trainkit(launch, repeat, tmp_path, whom, number, code, said):
    def trial(n):
        log = tmp_path / f"message{n}"
        one = launch(*TWO, script=LOOP, TRAINKIT_TERMINATION_LOG=str(log))
        pid_of(one, 0)
        pid_of(one, 1)
        send(one, whom, number)
        assert one.wait() == code, one.err
        if not said:
            return
        line = next(line for line in one.err.splitlines() if "rank 1 (worker-0 r1) on" in line)
        assert said in line
        assert "hint: " in one.err
        told = message(log)
        assert (told["exit_code"], told["rank"]) == (code, 1)
        assert told["signal"].startswith(number.name)

    repeat(trial, ci=1)


def test_a_second_notice_ends_at_once_and_leaves_nothing(launch, repeat):
    def trial(_):
        one = launch(*TWO, "--grace-period", 100, script=STUBBORN)
        one.await_line("ready", 2)
        one.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            one.process.wait(2)  # it waits for its ranks; another soon after is an echo
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 143
        assert "second SIGTERM: ending now" in one.err

    repeat(trial)


def test_ranks_that_do_not_end_are_killed_after_the_grace_period(launch, repeat):
    def trial(_):
        one = launch(*TWO, "--grace-period", 1, script=STUBBORN)
        one.await_line("ready", 2)
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 137, one.err
        assert "did not end within the grace period" in one.err

    repeat(trial)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_nothing_outlives_a_launcher_that_is_killed(launch, repeat, number):
    """SIGUSR1 is as deadly to a process that nobody told to listen for it."""

    def trial(_):
        one = launch(*TWO, script=STUBBORN)
        one.await_line("ready", 2)
        one.process.send_signal(number)
        assert one.wait() == -number

    repeat(trial)


def test_nothing_outlives_a_launcher_of_a_shell_that_is_killed(launch, repeat, tmp_path):
    (tmp_path / "train.py").write_text(
        "import time\nprint('ready', flush=True)\ntime.sleep(1000)\n"
    )

    def trial(_):
        for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
            one = launch("--no-python", "sh", "-c", f"{sys.executable} train.py; true")
            one.await_line("ready")
            one.process.send_signal(number)
            assert one.wait() == code, one.err

    repeat(trial)


def test_nothing_outlives_the_process_that_ranks_are_forked_from(launch, repeat):
    def trial(_):
        one = launch(*TWO, script=STUBBORN)
        one.await_line("ready", 2)
        os.kill(one.nursery().pid, signal.SIGKILL)
        assert one.wait() == 138, one.err
        assert "the process that starts ranks was killed" in one.err

    repeat(trial)


def test_a_rank_that_is_stopped_is_found_and_told_of(train, repeat):
    def trial(n):
        one = train(n, TRAINKIT_HANG_TIMEOUT="4")
        one.await_line("step 1 8")
        send(one, 1, signal.SIGSTOP)
        assert one.wait() == 138, one.err
        assert "rank 1: no step for" in one.err
        assert "its process does not run" in one.err
        assert "stacks of rank 0:" in one.err
        assert '.py", line' in one.err.split("stacks of rank 0:")[1]  # where it waits

    repeat(trial)


def test_a_rank_that_is_stopped_is_started_again_in_place(train, repeat):
    def trial(n):
        one = train(n, "--max-restarts", 1, EVERY="1", STEPS="40", TRAINKIT_HANG_TIMEOUT="4")
        one.await_line("step 1 8")
        send(one, 1, signal.SIGSTOP)
        assert one.wait() == 0, one.err
        assert steps(one, 0)[-1] == 40

    repeat(trial, ci=1)


def test_at_any_moment(train, repeat, seed):
    """Also while torch is imported, ranks meet, or are over."""
    moments = random.Random(seed)
    delays = [moments.uniform(0, 4) for _ in range(100)]

    def trial(n):
        one = train(n)
        time.sleep(delays[n])
        one.process.send_signal(signal.SIGTERM)
        # Before it listens a signal ends it as any process; a shell says 143 of that, too.
        assert one.wait() in (143, -15), (delays[n], one.err)

    repeat(trial, ci=6, soak=60)


@pytest.fixture
def first_process():
    """Words before a command that make it PID 1 of a process namespace."""
    words = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    probe = subprocess.run([*words, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no process namespace can be made here: {probe.stderr.strip()}")
    return words


@requires_root()
def test_as_the_first_process_of_a_container(launch, repeat, tmp_path, first_process):
    """The kernel gives PID 1 no default action: what it does not handle it does not hear."""

    def trial(n):
        one = launch(
            *TWO,
            script=ENDLESS,
            before=first_process,
            STEPS="100000",
            PAUSE="0.01",
            TRAINKIT_CHECKPOINT_DIR=str(tmp_path / f"ckpt{n}"),
        )
        one.await_line("step 1 3")
        first = one.nursery()  # the launcher: `unshare` is its parent
        os.kill(first.pid, signal.SIGTERM)
        assert one.wait() == 143, one.err
        assert f"saved step {steps(one, 0)[-1]}" in one.err

    repeat(trial, ci=1)


@requires_root()
def test_as_the_first_process_while_torch_is_imported(launch, repeat, first_process):
    def trial(_):
        one = launch(script="import time, torch\ntime.sleep(20)\n", before=first_process)

        def imports():
            first = one.nursery()
            return first and b"libtorch" in maps(first.pid) and first

        first = wait_until(imports, what="the import of torch", deadline=Deadline(60))
        os.kill(first.pid, signal.SIGTERM)
        assert one.wait() == 143, one.err

    repeat(trial, ci=1)


def maps(pid):
    try:
        return Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return b""
