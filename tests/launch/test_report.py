"""Failure reports of processes that really ran and really ended so."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest

from trainkit.config import environ, set_environ
from trainkit.launch.report import RankEnd, failure_report
from trainkit.testing import requires_module

OURS = """
import os, sys, time
from trainkit.errors import *
from trainkit.lifecycle import report

def main():
    {body}

try:
    main()
except BaseException as error:
    code = report(error, rank=int(sys.argv[1]), error_file=os.environ["TORCHELASTIC_ERROR_FILE"])
    sys.exit(code)
"""

RECORDED = """
import os, sys
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    {body}

main()
"""

BARE = """
import os, signal, sys
{body}
"""


@pytest.fixture
def rank(tmp_path):
    """Runs a rank to its end; what is planted in the environment is there for it, too."""

    def run(body, *, number=0, program=OURS, asked=False, **variables):
        body = textwrap.dedent(body).strip()
        indent = "" if program is BARE else "    "
        code = program.replace("{body}", body.replace("\n", "\n" + indent))
        error_file = tmp_path / f"{number}" / "error.json"
        error_file.parent.mkdir(exist_ok=True)
        script = error_file.with_name("train.py")
        script.write_text(code)
        process = subprocess.Popen(
            [sys.executable, str(script), str(number)],
            env={**environ(), "TORCHELASTIC_ERROR_FILE": str(error_file), **variables},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            _, errors = process.communicate(timeout=240)
        finally:
            process.kill()
            process.wait()
        return RankEnd(
            rank=number,
            local_rank=number,
            label=f"worker-0 r{number}",
            pid=process.pid,
            exitcode=process.returncode,
            time=time.time(),
            error_file=error_file,
            asked=asked,
            tail=tuple(errors.splitlines()[-50:]),
        )

    return run


def report_of(*ends, **options):
    """The report, after checks that hold for each."""
    report = failure_report(ends, host="host-3", **options)
    message = report.termination_message()
    assert len(message.encode()) <= 4096
    if report.exit_code:
        values = fields_of(report)
        assert values["exit_code"] == report.exit_code
        assert values["rank"] == report.first.rank
        assert f"exit code {report.exit_code}" in report.text()
        assert report.text().endswith("\n")
        assert all(line.startswith("trainkit: ") for line in report.text().splitlines())
    return report


def fields_of(report):
    return json.loads(report.termination_message().splitlines()[1])


def planted(secrets):
    """Has ``secrets`` in this process's environment for a while."""
    stack = contextlib.ExitStack()
    set_environ(secrets)
    stack.callback(set_environ, dict.fromkeys(secrets))
    return stack


# What happened first


def test_an_exception_under_our_runner(rank):
    report = report_of(rank('raise ValueError("bad batch")', number=5), attempts=2)
    assert report.exit_code == 70
    assert report.retryable_in_place
    sentence = "rank 5 (worker-0 r5) on host-3 failed first: ValueError: bad batch (exit code 70)"
    assert sentence in report.text()
    assert report.termination_message().startswith(sentence)
    assert 'raise ValueError("bad batch")' in report.text()
    assert "Traceback" in report.termination_message()
    assert "2 restarts" in report.text()
    values = fields_of(report)
    assert (values["error"], values["message"]) == ("ValueError", "bad batch")
    assert values["restarts"] == 2


@pytest.mark.parametrize(
    ("raised", "code", "again"),
    [
        ('UsageError("no such flag")', 2, False),
        ('DataError("cut off")', 65, False),
        ('InputMissingError("not there")', 66, False),
        ('NoPermissionError("refused")', 77, False),
        ('TopologyError("RANK=x")', 78, False),
        ('RetryableError("the store is gone")', 138, True),
        ("SystemExit(3)", 3, True),
        ("SystemExit(1)", 1, True),
        ('OSError(5, "Input/output error")', 138, True),
        ('RuntimeError("CUDA error: uncorrectable ECC error encountered")', 138, True),
    ],
)
def test_exit_codes_pass_through(rank, raised, code, again):
    report = report_of(rank(f"raise {raised}"))
    assert (report.exit_code, report.retryable_in_place) == (code, again)


def test_the_earliest_by_its_own_record_is_the_first_though_it_was_seen_last(rank):
    early = rank('raise ValueError("the cause")', number=1)
    late = rank('raise KeyError("later")', number=0)
    ends = replace(late, time=early.time), replace(early, time=late.time + 5)
    report = report_of(*ends)
    assert report.first.rank == 1
    assert "after it rank 0 (worker-0 r0): KeyError: 'later' (exit code 70)" in report.text()


CONSEQUENCES = {
    "lost peer": ('raise PeerLostError("rank 1 went away")', OURS, False),
    "gloo": ('raise RuntimeError("Connection closed by peer [10.0.0.1]:123")', OURS, False),
    "gloo, without a record": (
        'raise RuntimeError("Connection closed by peer [10.0.0.1]:123")',
        BARE,
        False,
    ),
    "too late": ('raise DeadlineError("rank 1 did not come")', OURS, False),
    "pre-empted": ('raise Preempted("stopped")', OURS, False),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", BARE, False),
    "SIGTERM, asked": ("os.kill(os.getpid(), signal.SIGTERM)", BARE, True),
    "SIGKILL, asked": ("os.kill(os.getpid(), signal.SIGKILL)", BARE, True),
    "an error of its own, asked": ("sys.exit(70)", BARE, True),
}


@pytest.mark.parametrize("name", CONSEQUENCES)
@pytest.mark.parametrize("cause", ['raise ValueError("bad")', "os.kill(os.getpid(), 11)"])
def test_a_consequence_is_never_the_first(rank, name, cause):
    body, program, asked = CONSEQUENCES[name]
    consequence = rank(body, number=0, program=program, asked=asked)
    real = rank(cause, number=1)
    report = report_of(consequence, real)
    assert report.first.rank == 1
    assert report.exit_code == (139 if "kill" in cause else 70)
    assert "after it rank 0" in report.text()


def test_a_rank_that_failed_before_it_was_asked_and_hung(rank):
    """Its error is on record; then it did not end, and the launcher killed it."""
    hung = rank('raise ValueError("bad")', number=0)
    peer = rank('raise RuntimeError("Connection closed by peer")', number=1)
    hung = replace(hung, exitcode=-9, asked=True, time=peer.time + 30)
    report = report_of(hung, peer)
    assert (report.first.rank, report.exit_code) == (0, 70)


def test_a_lost_peer_alone_is_the_cause_here(rank):
    report = report_of(rank('raise PeerLostError("rank 7 went away")'), rank("pass", number=1))
    assert report.exit_code == 138
    assert "rank 7 went away" in report.text()


def test_all_were_asked_to_stop_and_one_failed_in_doing_so(rank):
    stopped = rank('raise Preempted("step 5 is saved")', number=0, asked=True)
    failed = rank('raise ValueError("cannot save")', number=1, asked=True)
    assert report_of(stopped, failed).exit_code == 70
    report = report_of(stopped, replace(stopped, rank=1))
    assert report.exit_code == 143
    assert "rank 0 (worker-0 r0) on host-3 stopped when it was asked to: Preempted" in report.text()


def test_a_rank_that_does_not_stop_in_the_grace_period(rank):
    killed = rank("os.kill(os.getpid(), 9)", number=1, program=BARE, asked=True)
    report = report_of(rank('raise Preempted("saved")', asked=True), killed)
    assert report.exit_code == 137
    assert "grace period" in report.text()


def test_nothing_failed(rank):
    report = report_of(rank("pass"))
    assert (report.exit_code, report.text(), report.termination_message()) == (0, "", "")
    assert not report.retryable_in_place
    with pytest.raises(ValueError, match="at least one"):
        failure_report([], host="h")


# Signals


@pytest.mark.parametrize(
    ("number", "code", "hint"),
    [
        (signal.SIGKILL, 137, "killed from outside"),
        (signal.SIGSEGV, 139, "native code"),
        (signal.SIGABRT, 134, "native code"),
        (signal.SIGBUS, 135, "/dev/shm"),
        (signal.SIGTERM, 143, "trainkit did not ask"),
        (signal.SIGUSR1, 138, ""),
    ],
)
def test_signals(rank, number, code, hint):
    report = report_of(rank(f"os.kill(os.getpid(), {int(number)})", program=BARE))
    assert report.exit_code == code
    assert report.retryable_in_place
    assert f"{number.name} ({int(number)})" in report.text()
    assert hint in fields_of(report)["hint"]
    assert fields_of(report)["signal"].startswith(number.name)


def test_a_kill_with_and_without_a_raised_counter(rank):
    killed = rank("os.kill(os.getpid(), 9)", program=BARE)
    with_counter = fields_of(report_of(killed, oom_kills=1))["hint"]
    assert "killed by the kernel: memory limit of the container" in with_counter
    assert "1 process killed" in with_counter
    assert "killed by the kernel" not in fields_of(report_of(killed))["hint"]


def test_a_signal_behind_a_shell(rank):
    report = report_of(
        rank(
            """sys.exit(os.waitstatus_to_exitcode(os.system("sh -c 'kill -9 $$'")))""", program=BARE
        )
    )
    assert report.exit_code == 137
    assert "SIGKILL (9)" in report.text()


NCCL_TIMEOUT = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE, "
    "Timeout(ms)=600000) ran for 600013 milliseconds before timing out."
)


@pytest.mark.parametrize(
    ("printed", "code"),
    [
        (NCCL_TIMEOUT, 138),
        ("Process group watchdog thread terminated with exception: NCCL error: remote error", 138),
        (
            "Process group watchdog thread terminated with exception: CUDA error: illegal access",
            134,
        ),
        ("double free or corruption (out)", 134),
    ],
)
def test_an_abort_by_the_watchdog_of_collectives(rank, printed, code):
    body = f"print({printed!r}, file=sys.stderr, flush=True)\nos.abort()"
    report = report_of(rank(body, program=BARE))
    assert report.exit_code == code
    if code == 138:
        assert "watchdog" in report.text()


def test_the_watchdog_follows_from_what_ended_another_rank(rank):
    body = f"print({NCCL_TIMEOUT!r}, file=sys.stderr, flush=True)\nos.abort()"
    aborted = rank(body, number=0, program=BARE)
    killed = rank("os.kill(os.getpid(), 9)", number=1, program=BARE)
    assert report_of(aborted, killed).first.rank == 1


# Children of a rank


def test_a_killed_child_that_no_rank_noticed(rank):
    ended = [rank("pass", number=n) for n in range(2)]
    report = report_of(*ended, killed_children=[(77, "python train.py", 9)])
    assert (report.exit_code, report.retryable_in_place) == (137, True)
    for text in (report.text(), report.termination_message()):
        assert "SIGKILL (9)" in text
        assert "process 77 (python train.py)" in text
        assert "memory" in text
    assert (
        "limit of the container"
        in report_of(*ended, killed_children=[(77, "python", 9)], oom_kills=1).text()
    )


def test_a_child_that_was_ended_in_order_is_no_failure(rank):
    report = report_of(rank("pass"), killed_children=[(77, "python", int(signal.SIGTERM))])
    assert report.exit_code == 0


def test_a_failed_rank_comes_before_its_killed_child(rank):
    report = report_of(rank('raise ValueError("x")'), killed_children=[(77, "python -c ...", 9)])
    assert report.exit_code == 70
    assert "process 77 of a rank was killed: SIGKILL (9), python -c ..." in report.text()


# Error files of others


@requires_module("torch")
def test_the_record_of_torch(rank):
    end = rank('raise ValueError("bad: batch")', program=RECORDED)
    assert json.loads(end.error_file.read_text())["message"]["message"] == "ValueError: bad: batch"
    report = report_of(end)
    assert report.exit_code == 1
    values = fields_of(report)
    assert (values["error"], values["message"]) == ("ValueError", "bad: batch")
    assert "in main" in report.text()
    # Its stamps are whole seconds: no reason to be before one that failed earlier.
    earlier = replace(end, rank=1, time=end.error_file.stat().st_mtime - 0.001, error_file=None)
    assert report_of(end, earlier).first.rank == 1


@requires_module("torch")
def test_gpu_memory_as_torch_tells_it(rank):
    body = """
        import torch
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    """
    for program in (OURS, RECORDED):
        assert "GPU's memory" in fields_of(report_of(rank(body, program=program)))["hint"]


@requires_module("torch")
def test_a_loader_worker_that_was_killed(rank):
    body = """
        import torch
        from torch.utils.data import DataLoader, Dataset
        class Killed(Dataset):
            def __len__(self): return 4
            def __getitem__(self, i): os.kill(os.getpid(), 9)
        next(iter(DataLoader(Killed(), num_workers=1)))
    """
    report = report_of(rank(body, OMP_NUM_THREADS="1"))
    assert report.exit_code == 138
    hint = fields_of(report)["hint"]
    assert "memory" in hint
    assert "killed for memory" in hint


def test_without_a_record_the_last_lines_tell(rank):
    report = report_of(rank('raise OSError(28, "No space left on device")', program=BARE))
    values = fields_of(report)
    assert report.exit_code == 1
    assert values["error"] == "OSError"
    assert "disk is full" in values["hint"]
    assert "last lines of its output" in report.text()


DAMAGED = {
    "empty": b"",
    "no JSON": b"\x00\xff\xfe garbage",
    "another shape": b'["message"]',
    "a number": b"1e999",
    "deep": b"[" * 200_000,
    "no text": b'{"message": {"message": {"message": 1}}}',
    "wrong types": b'{"message": {"message": "x", "extraInfo": {"trainkit": {"rank": []}}}}',
    "half a surrogate": b'{"message": "ValueError: \\ud800 lone"}',
    "stamps that are none": b'{"message": {"message": "A: b", "extraInfo": {"timestamp": "NaN"}}}',
    "huge": b'{"message": "ValueError: ' + b"x" * (40 << 20) + b'"}',
    "hostile": b'{"message": "ValueError: ' + b"://" * 300_000 + b'"}',
    "colours": b'{"message": "ValueError: \\u001b[31mred\\u001b[0m\\r\\u0007"}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_error_file_that_is_none(rank, name):
    end = rank('print("the last word", file=sys.stderr)\nsys.exit(9)', program=BARE)
    end.error_file.write_bytes(DAMAGED[name])
    began = time.monotonic()
    report = report_of(end)
    assert time.monotonic() - began < 60
    assert report.exit_code == 9
    assert len(report.text()) < 50_000
    report.text().encode()
    assert not {"\x1b", "\r", "\x07", "\x00"} & set(report.text() + report.termination_message())


def test_an_error_file_that_nobody_finished(rank):
    end = rank('raise ValueError("quoted \\" and é, at length")')
    whole = end.error_file.read_bytes()
    seen = set()
    for size in range(0, len(whole), 7):
        end.error_file.write_bytes(whole[:size])
        report = report_of(end)
        assert report.exit_code == 70
        seen.add(fields_of(report)["message"])
    assert 'quoted " and é, at length' in seen


def test_an_error_file_that_is_a_pipe_or_a_folder(rank, tmp_path):
    end = rank("sys.exit(9)", program=BARE)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "a\0b", None):
        assert report_of(replace(end, error_file=path)).exit_code == 9


# What is shown of it


def test_the_message_holds_cause_hint_and_code_whatever_its_size(rank):
    body = """
        def deeper(n):
            if n == 0:
                raise OSError(28, "No space left on device: " + 30_000 * "ü\\"")
            deeper(n - 1)
        deeper(200)
    """
    end = rank(body)
    others = [replace(end, rank=n, local_rank=n, time=end.time + n) for n in range(1, 60)]
    others = [replace(one, exitcode=-9, asked=True) for one in others]
    report = report_of(end, *others)
    message = report.termination_message()
    assert "failed first: OSError: [Errno 28] No space left on device" in message
    assert "exit code 70" not in message.splitlines()[2]
    values = fields_of(report)
    assert values["exit_code"] == 70
    assert "disk is full" in values["hint"]
    assert "bytes left out" in message
    assert "after it 39 more ranks" in report.text()


SECRETS = {
    "HF_TOKEN": "hf_planted_1",
    "AWS_SECRET_ACCESS_KEY": "planted/2+x=",
    "DB_PASSWORD": "planted-3",
    "MY_CREDENTIALS": "line-one-planted-4\nline-two-planted-4",
}
SPILL = """
    token, key = os.environ["HF_TOKEN"], os.environ["AWS_SECRET_ACCESS_KEY"]
    print("tail:", os.environ["DB_PASSWORD"], os.environ["MY_CREDENTIALS"], file=sys.stderr)
    def login(*arguments): raise ValueError(key + " at s3://me:word5@host")
    exec(compile(f"login({token!r})", "script", "exec"))
"""


@pytest.mark.parametrize(
    "program", [OURS, BARE, pytest.param(RECORDED, marks=requires_module("torch"))]
)
@pytest.mark.parametrize("record", [True, False])
def test_planted_secrets_are_nowhere(rank, program, record):
    with planted(SECRETS):
        end = rank(SPILL, program=program)
        end = end if record else replace(end, error_file=None)
        tail = (*end.tail, f"Traceback of {SECRETS['HF_TOKEN']}", "https://u:pa55word@host/x")
        end = replace(end, tail=tail)
        for one in (end, replace(end, exitcode=-11), replace(end, exitcode=0)):
            report = report_of(
                one,
                replace(end, rank=1, time=end.time + 1),
                killed_children=[(7, f"wget --password {SECRETS['DB_PASSWORD']}", 9)],
            )
            for text in (report.text(), report.termination_message()):
                assert text
                for secret in (
                    "hf_planted_1",
                    "planted/2",
                    "planted-3",
                    "planted-4",
                    "word5",
                    "pa55",
                ):
                    assert secret not in text


def test_what_a_rank_says_itself_has_no_secrets(rank):
    """Also of variables that the launcher does not have."""
    end = rank('raise ValueError(os.environ["ONLY_THE_RANKS_KEY"])', ONLY_THE_RANKS_KEY="planted-5")
    assert "planted-5" not in end.error_file.read_text()
    assert "planted-5" not in "\n".join(end.tail)
    assert "ValueError: …" in report_of(end).text()
