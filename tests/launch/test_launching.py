"""``trainkit launch`` from the command line to the exit code, with real ranks."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.launch.conftest import PLAIN
from trainkit.testing import requires_module
from trainkit.waiting import Deadline, wait_until

TWO = ("--nproc-per-node", 2)


def there(one):
    """What ranks said when they met: (rank, world size, restart)."""
    lines = [line.split("there ")[1] for line in one.out.splitlines() if "there " in line]
    return sorted(tuple(map(int, line.split())) for line in lines)


def test_two_ranks_meet_as_under_torchrun(launch):
    one = launch(*TWO, script=PLAIN + "print(sys.argv[1:], __name__)", arguments=["a", "--b"])
    assert one.wait() == 0, one.err
    assert there(one) == [(0, 2, 0), (1, 2, 0)]
    assert "[worker-0 r1] ['a', '--b'] __main__" in one.out
    assert "local worker · starts 2 ranks 0–1 of 2" in one.err


def test_a_module_and_one_rank_without_a_prefix(launch, tmp_path):
    (tmp_path / "mine.py").write_text(PLAIN)
    one = launch("-m", "mine")  # the script of the fixture becomes its argument
    assert one.wait() == 0, one.err
    assert one.out == "there 0 1 0\n"


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("raise ValueError('mine')", 70),
        ("sys.exit(7)", 7),
        ("sys.exit(78)", 78),
        ("os.kill(os.getpid(), 9)", 137),
        ("os.kill(os.getpid(), 11)", 139),
        ("sys.exit(138)", 138),
    ],
)
def test_the_exit_code_says_what_happened(launch, what, code):
    one = launch(*TWO, script=PLAIN + f"if rank == 1: {what}\nmeet()")
    assert one.wait() == code, one.err
    assert "rank 1" in one.err


def test_the_last_words_of_a_rank_are_in_the_report(launch):
    script = "import os, sys\nprint('words ' * 10, file=sys.stderr)\nos._exit(3)\n"
    one = launch("--no-preload", script=script)
    assert one.wait() == 3
    report = one.err[one.err.index("failed first") :]
    assert "words words" in report


def test_the_report_is_of_what_the_rank_recorded_and_not_of_its_output(launch, tmp_path):
    script = "import os, sys, torch\nos.close(2)\nraise ValueError('first\\nsecond')\n"
    log = tmp_path / "message"
    one = launch(script=script, TRAINKIT_TERMINATION_LOG=str(log))
    assert one.wait() == 70, one.err
    assert "failed first: ValueError: first second" in one.err
    assert "Traceback (most recent call last):" in log.read_text()


@pytest.mark.parametrize(
    "code", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (65, 66, 77)), 78]
)
def test_what_stays_wrong_is_not_tried_again(launch, code):
    one = launch(*TWO, "--max-restarts", 3, script=PLAIN + f"sys.exit({code} if rank else 0)")
    assert one.wait() == code
    assert {restart for _, _, restart in there(one)} == {0}


def test_a_script_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "trainkit", "launch"]
    gone = subprocess.run([*command, "gone.py"], cwd=tmp_path, capture_output=True, text=True)
    assert gone.returncode == 66
    assert "there is no script 'gone.py'" in gone.stderr
    assert "Traceback" not in gone.stderr
    wrong = subprocess.run([*command, "--nope", "x.py"], capture_output=True, text=True)
    assert wrong.returncode == 2


READY = (
    PLAIN
    + """
import signal, time
from pathlib import Path
nursery = os.getppid()
def read(path):
    try: return path.read_text()
    except OSError: return ") - -1"
def children():
    return {int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat")
            if read(p).rpartition(")")[2].split()[1] == str(nursery)}
print("modules", rank, restart, "torch._dynamo" in sys.modules, flush=True)
if restart == 0:
    pids = [None, None]
    dist.all_gather_object(pids, os.getpid())
    while len(children() - set(pids)) < 2:
        time.sleep(0.05)
    print("THREADS", len(os.listdir(f"/proc/{nursery}/task")), flush=True)
    Path(f"spares{rank}").write_text(" ".join(map(str, children() - set(pids))))
    dist.barrier()
    if rank == 1:
        # VICTIM
        os.kill(os.getpid(), signal.SIGKILL)
    while True: meet()
spares = set(map(int, Path("spares0").read_text().split()))
print("SPARE", rank, os.getpid() in spares, flush=True)
dist.destroy_process_group()
"""
)


def test_forks_are_ready_before_a_rank_fails(launch):
    """They have what training imports late, from a process that is still fit for it."""
    one = launch(*TWO, "--max-restarts", 1, script=READY)
    assert one.wait() == 0, one.err
    for line in ("modules 0 0 True", "modules 0 1 True", "modules 1 1 True", "THREADS 1"):
        assert line in one.out
    assert "SPARE 0 True" in one.out
    assert "SPARE 1 True" in one.out


def test_a_fork_that_was_ready_and_was_killed_is_not_missed(launch):
    victim = "os.kill(max(children() - set(pids)), signal.SIGKILL)"
    one = launch(*TWO, "--max-restarts", 1, script=READY.replace("# VICTIM", victim))
    assert one.wait() == 0, one.err
    assert there(one) == [(0, 2, 0), (0, 2, 1), (1, 2, 0), (1, 2, 1)]


def test_the_process_that_ranks_are_forked_from_is_fit_for_it(launch):
    """One native thread, no CUDA, no connection to anywhere."""
    script = (
        "import os, sys, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "nursery = os.getppid()\n"
        "tasks = os.listdir(f'/proc/{nursery}/task')\n"
        "maps = open(f'/proc/{nursery}/maps').read()\n"
        "where = f'/proc/{nursery}/fd'\n"
        "files = [os.readlink(f'{where}/{fd}') for fd in os.listdir(where)]\n"
        "unix = open(f'/proc/{nursery}/net/unix').read()\n"
        "inet = [f for f in files if f.startswith('socket:') and f[8:-1] not in unix]\n"
        "print('FIT', len(tasks), 'libtorch' in maps, 'nvidia0' in maps, inet, flush=True)\n"
    )
    one = launch("--nproc-per-node", 1, script=script)
    assert one.wait() == 0, one.err
    assert "FIT 1 True False []" in one.out


def test_without_preload_a_rank_has_an_interpreter_of_its_own(launch):
    script = "import sys\nprint('torch' in sys.modules, sys.flags.interactive)\nimport torch\n"
    one = launch("--no-preload", script=script)
    assert one.wait() == 0, one.err
    assert one.out == "False 0\n"
    assert launch("--preload", script=script).wait() == 0


def test_a_child_of_a_rank_that_is_killed_is_no_success(launch):
    script = (
        "import os, time\npid = os.fork()\nif pid == 0: time.sleep(1000)\nos.kill(pid, 9)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"  # else launch may be first to kill it
    )
    one = launch(script=script)
    assert one.wait() >= 128
    assert "was killed" in one.err


def test_files_of_each_rank(launch, tmp_path):
    script = PLAIN + "print('err', rank, file=sys.stderr)"
    one = launch(*TWO, "--log-dir", tmp_path / "logs", "-r", "0:1", script=script)
    assert one.wait() == 0, one.err
    run = next((tmp_path / "logs").iterdir())
    assert (run / "attempt_0/0/stdout.log").read_text() == "there 0 2 0\n"
    assert "err 1" in (run / "attempt_0/1/stderr.log").read_text()
    assert there(one) == [(1, 2, 0)]
    two = launch(*TWO, "--local-ranks-filter", "1", "--log-json", script=PLAIN)
    assert two.wait() == 0
    assert json.loads(two.out)["message"] == "there 1 2 0"


def test_dry_run_shows_what_would_run_and_no_secret(launch):
    one = launch(*TWO, "--dry-run", "--max-restarts", 4, MY_TOKEN="hush-hush-hush")
    assert one.wait() == 0
    assert "starts 2 rank(s)" in one.out
    assert "restarts in place: 4" in one.out
    assert "hush" not in one.out + one.err
    assert "there" not in one.out


def test_variables_say_the_same_as_flags(launch):
    one = launch("-m", "mine", PET_NPROC_PER_NODE="2", PET_MAX_RESTARTS="")
    assert one.wait() == 70 or "No module named" in one.err
    two = launch(script=PLAIN, PET_NPROC_PER_NODE="2", PET_LOCAL_RANKS_FILTER="0")
    assert two.wait() == 0, two.err
    assert there(two) == [(0, 2, 0)]


def test_with_virtual_local_ranks_each_sees_one_device(launch):
    script = (
        "import os, torch\nprint(os.environ['LOCAL_RANK'], os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    for visible, expected in (("3,5", {"0 3", "0 5"}), ("", {"0 0", "0 1"})):
        one = launch(
            *TWO,
            "--no-prefix",
            PET_VIRTUAL_LOCAL_RANK="1",
            script=script,
            **({"CUDA_VISIBLE_DEVICES": visible} if visible else {}),
        )
        assert one.wait() == 0, one.err
        assert set(one.out.splitlines()) == expected


def test_values_with_signs_arrive_as_they_are(launch):
    value = "=mlx5_0:1,mlx5_1:1;x=y"
    script = "import os, torch\nprint(os.environ['NCCL_IB_HCA'])"
    for preload in ("--preload", "--no-preload"):
        one = launch(preload, script=script, NCCL_IB_HCA=value)
        assert one.wait() == 0
        assert one.out == value + "\n"


def test_what_is_waited_for_comes_before_the_first_rank(launch, tmp_path):
    late = tmp_path / "volume"
    one = launch("--wait-for", late, script="print('here')")
    wait_until(lambda: "local worker" in one.err, what="the launcher", deadline=Deadline(60))
    assert "here" not in one.out
    late.mkdir()
    assert one.wait() == 0, one.err
    assert one.out == "here\n"


def test_what_does_not_come_is_named_and_may_be_tried_again(launch, tmp_path):
    environ = {"TRAINKIT_TIMEOUT": "0.2", "TRAINKIT_WAIT_FOR": str(tmp_path / "none")}
    message = tmp_path / "termination"
    one = launch(script="print('here')", TRAINKIT_TERMINATION_LOG=str(message), **environ)
    assert one.wait() == 138
    assert f"the path {tmp_path / 'none'}" in one.err
    assert one.out == ""
    sentence, values = message.read_text().splitlines()
    assert str(tmp_path / "none") in sentence
    assert json.loads(values)["exit_code"] == 138


@pytest.mark.parametrize("moment", ["local worker", "waiting for the path"])
def test_a_notice_ends_the_start_and_the_wait(launch, tmp_path, moment):
    one = launch("--wait-for", tmp_path / "none", script="import torch; print('here')")
    wait_until(lambda: moment in one.err, what="the launcher", deadline=Deadline(60))
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143, one.err
    assert "Traceback" not in one.err
    assert one.out == ""


CHILD_IS_KILLED = """
import os, signal, subprocess, sys
if not os.path.exists("again"):
    open("again", "w").close()
    shell = "sleep 60 >/dev/null 2>&1 & echo $!"
    child = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True).stdout
    os.kill(int(child), signal.SIGKILL)
    os._exit(71)
"""


@requires_module("torch")
def test_a_child_that_was_killed_before_a_restart_is_no_failure_after_it(launch):
    one = launch("--preload", "--max-restarts", 1, script=CHILD_IS_KILLED)
    assert one.wait() == 0, one.err
    assert "starting again in place" in one.err


@pytest.mark.parametrize("name", ["--preload", "by its import"])
def test_torch_that_does_not_work_is_one_message(launch, tmp_path, name):
    broken = tmp_path / "broken"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise ImportError('libcuda.so.1: gone')")
    flags = ["--preload"] if name == "--preload" else []
    script = "pass" if flags else "import torch"
    path = os.pathsep.join(filter(None, (str(broken), os.environ.get("PYTHONPATH"))))
    one = launch(*flags, script=script, PYTHONPATH=path)
    assert one.wait() == 78, one.err
    assert "torch cannot be imported (libcuda.so.1: gone)" in one.err
    assert "Traceback" not in one.err


def test_a_notice_that_is_no_usual_signal_does_not_end_the_nursery(launch):
    script = "import os, time\nprint('here', os.getppid(), flush=True)\ntime.sleep(2)\n"
    one = launch("--preload", script=script, TRAINKIT_PREEMPTION_SIGNALS="SIGTERM,SIGUSR2")
    one.await_line("here")
    os.kill(int(one.out.split()[1]), signal.SIGUSR2)
    assert one.wait() == 0, one.err


def test_a_thing_that_cannot_be_waited_for_is_told_at_once(launch):
    one = launch("--wait-for", "/none", "--wait-for", "a..b:80", script="pass")
    assert one.wait() == 2
    assert "--wait-for 'a..b:80': expected" in one.err
