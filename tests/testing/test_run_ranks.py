"""What a function sees in a rank, and what its end looks like from outside."""

import os
import random
import signal
import sys
import threading
import time

import pytest

from trainkit.errors import InputMissingError, UsageError
from trainkit.testing import RanksFailed, RanksTimeout, requires_module, run_ranks

BARE = ()


def variables_ranks(prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def all_reduce_ranks(start: float) -> float:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    dist.destroy_process_group()
    return total.item()


def second_raises_ranks() -> None:
    print("hello from", os.environ["RANK"])
    if os.environ["RANK"] == "1":
        raise ValueError("the second cannot")


def second_hangs_ranks() -> str:
    if os.environ["RANK"] == "1":
        waiting_for_godot()
    return "done"


def waiting_for_godot() -> None:
    threading.Event().wait()


def second_fails_first_hangs_ranks() -> None:
    if os.environ["RANK"] == "1":
        sys.exit(3)
    waiting_for_godot()


def end_ranks(how: str) -> None:
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
        waiting_for_godot()
    if how == "interrupt":
        raise KeyboardInterrupt
    sys.exit(None if how == "none" else int(how) if how.isdigit() else how)


def circumstances_ranks() -> dict[str, object]:
    return {
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "stdin": sys.stdin.read(),
        "leader": os.getsid(0) == os.getpid() == os.getpgid(0),
        "children": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "pipe": signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN,
        "wakeup": signal.set_wakeup_fd(-1),
        "threads": threading.active_count(),
        "torch": "torch" in sys.modules,
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def randoms_ranks() -> float:
    return random.random()


def spoil_ranks() -> tuple[bool, bool]:
    """Whether an earlier run's changes are to be seen; makes them."""
    seen = "SPOILED" in os.environ, hasattr(sys, "spoiled")
    os.environ["SPOILED"] = "yes"
    sys.spoiled = True  # type: ignore[attr-defined]
    return seen


def lambda_ranks() -> object:
    return lambda: None


def arguments_ranks(first: int, *, second: int) -> tuple[int, int]:
    return first, second


def test_ranks_get_the_variables_of_torchruns_workers():
    results = run_ranks(
        variables_ranks, 2, ("RANK", "WORLD", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELAS")
    )
    ports = {result.value.pop("MASTER_PORT") for result in results}
    files = {result.value.pop("TORCHELASTIC_ERROR_FILE") for result in results}
    assert len(ports) == 1
    assert len(files) == 2
    assert int(ports.pop()) > 1024
    for rank, result in enumerate(results):
        assert result.value == {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "ROLE_NAME": "default",
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
            "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        }


@requires_module("torch")
def test_two_ranks_reduce_with_gloo():
    results = run_ranks(all_reduce_ranks, 2, 10.0)
    assert [result.value for result in results] == [21.0, 21.0]


@pytest.mark.world_size(3)
def test_fixture_takes_the_number_of_ranks_from_the_mark(ranks):
    results = ranks(variables_ranks, ("WORLD_SIZE",), preload=BARE)
    assert [result.value for result in results] == [{"WORLD_SIZE": "3"}] * 3


def test_arguments_reach_the_function():
    assert run_ranks(arguments_ranks, 1, 1, kwargs={"second": 2}, preload=BARE)[0].value == (1, 2)


def test_circumstances_are_those_of_a_fresh_process(tmp_path):
    [result] = run_ranks(circumstances_ranks, 1, argv=["--lr", "1"], cwd=tmp_path, preload=BARE)
    assert result.value.pop("descriptors") <= 6  # 0-2, stacks, and the listing's own
    assert result.value == {
        "argv": ["--lr", "1"],
        "cwd": str(tmp_path),
        "stdin": "",
        "leader": True,
        "children": True,
        "interrupt": True,
        "pipe": True,
        "wakeup": -1,
        "threads": 1,
        "torch": False,
    }


def test_ranks_draw_different_random_numbers():
    values = [result.value for result in run_ranks(randoms_ranks, 3, preload=BARE)]
    values += [result.value for result in run_ranks(randoms_ranks, 3, preload=BARE)]
    assert len(set(values)) == 6


def test_nothing_leaks_from_one_run_into_the_next():
    for _ in range(2):
        assert run_ranks(spoil_ranks, 1, preload=BARE)[0].value == (False, False)


def test_error_names_the_rank_that_raised_and_shows_its_output():
    with pytest.raises(RanksFailed) as caught:
        run_ranks(second_raises_ranks, 2, preload=BARE)
    message = str(caught.value)
    assert "the first to fail is rank 1: exit code 1" in message
    assert message.index("hello from 1") < message.index("hello from 0")
    assert "ValueError: the second cannot" in message
    assert "in second_raises_ranks" in message
    assert "trainkit/testing" not in message  # frames of the machinery
    assert [result.exit_code for result in caught.value.results] == [0, 1]


def test_failures_are_only_reported_when_they_are_not_checked():
    results = run_ranks(second_raises_ranks, 2, check=False, preload=BARE)
    assert [result.failed for result in results] == [False, True]
    assert "ValueError" in results[1].stderr
    assert results[0].stdout == "hello from 0\n"
    assert results[1].value is None


def test_ranks_that_wait_for_a_failed_one_are_ended_long_before_the_deadline():
    with pytest.raises(RanksFailed, match="rank 1: exit code 3") as caught:
        run_ranks(second_fails_first_hangs_ranks, 2, timeout=600, preload=BARE)
    first, second = caught.value.results
    assert (first.cut_off, first.exit_code) == (True, -signal.SIGKILL)
    assert (second.cut_off, second.exit_code) == (False, 3)


@pytest.mark.parametrize("check", [True, False])
def test_deadline_names_the_rank_that_hangs_and_shows_its_stack(check):
    with pytest.raises(RanksTimeout, match="rank 1 did not end within") as caught:
        run_ranks(second_hangs_ranks, 2, timeout=2.0, check=check, preload=BARE)
    first, second = caught.value.results
    assert (first.value, first.overdue) == ("done", False)
    assert second.overdue
    assert "in waiting_for_godot" in str(caught.value)
    assert "in second_hangs_ranks" in second.stacks
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("none", 0),
        ("0", 0),
        ("143", 143),
        ("255", 255),
        ("a message", 1),
        ("interrupt", -signal.SIGINT),
        ("SIGTERM", -signal.SIGTERM),
        ("SIGKILL", -signal.SIGKILL),
        ("SIGSEGV", -signal.SIGSEGV),
    ],
)
def test_exit_code_is_that_of_an_interpreter(how, code):
    [result] = run_ranks(end_ranks, 1, how, check=False, preload=BARE)
    assert result.exit_code == code
    assert ("a message" in result.stderr) == (how == "a message")


def test_end_by_a_signal_is_named():
    with pytest.raises(RanksFailed, match=r"exit code -15 \(SIGTERM\)"):
        run_ranks(end_ranks, 1, "SIGTERM", preload=BARE)


def test_value_that_cannot_be_pickled_fails_the_rank_and_says_so():
    with pytest.raises(RanksFailed, match="returned a function that cannot be pickled"):
        run_ranks(lambda_ranks, 1, preload=BARE)


def test_duration_is_the_time_from_fork_to_end():
    began = time.monotonic()
    [result] = run_ranks(randoms_ranks, 1, preload=BARE)
    assert 0 < result.duration < time.monotonic() - began


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: None, "cannot be found again"),
        ("neither", "none of the forms"),
        (print, None),
    ],
)
def test_target_that_no_process_can_find_is_refused(target, message):
    if message is None:
        run_ranks(target, 1, "printed", preload=BARE)
        return
    with pytest.raises(UsageError, match=message):
        run_ranks(target, 1, preload=BARE)


def test_wrong_calls_are_refused(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("")
    with pytest.raises(UsageError, match="at least one rank"):
        run_ranks(randoms_ranks, 0)
    with pytest.raises(UsageError, match="argv="):
        run_ranks(script, 1, "--epochs")
    with pytest.raises(UsageError, match="1 environments for n=2"):
        run_ranks(randoms_ranks, 2, env=[{}])
    with pytest.raises(InputMissingError, match=r"no script .*absent\.py"):
        run_ranks(tmp_path / "absent.py", 1)


def test_missing_module_or_function_is_the_ranks_error():
    for target in ("no_such_module:main", "os.path:no_such_function"):
        with pytest.raises(RanksFailed, match="no_such"):
            run_ranks(target, 1, preload=BARE)
