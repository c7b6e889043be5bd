"""What of the output of several processes tells the cause."""

from trainkit.launch.ends import first_failure

PEER = [
    "Traceback (most recent call last):",
    '  File "train.py", line 7, in main',
    "    loss.backward()",
    "RuntimeError: [pair.cc:561] Connection closed by peer [10.0.0.2]:9613.",
]
CAUSE = [
    "Traceback (most recent call last):",
    '  File "train.py", line 9, in main',
    "    raise ValueError(step)",
    "ValueError: 3",
]


def test_the_first_traceback_that_is_of_no_lost_peer():
    later = [*CAUSE[:-1], "ValueError: 4"]
    lines = ["step 1", *PEER, "trainkit: rank 2: hint: another rank ended first", *CAUSE, *later]
    assert first_failure(lines) == CAUSE


def test_a_message_in_place_of_a_traceback():
    told = "trainkit: rank 1: there is no data.csv; expected a file"
    stopped = "trainkit: rank 0: SIGTERM, and no step has asked whether to stop"
    assert first_failure([stopped, *PEER, told, "more"]) == [told]


def test_without_either_the_last_lines():
    lines = [f"line {number}" for number in range(50)]
    assert first_failure(lines) == lines[-20:]
    assert first_failure([*PEER, "prterun noticed that rank 1 exited on signal 9"])[-1].endswith(
        "9"
    )
