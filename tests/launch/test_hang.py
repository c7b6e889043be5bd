"""Which ranks are stuck, by what they write."""

import time

import pytest

from trainkit.launch.hang import HangWatch
from trainkit.lifecycle.heartbeat import _FORM


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def forward(seconds):
        now[0] += seconds

    return forward


def write(path, step, polls, beats):
    path.write_bytes(_FORM.pack(step, polls, beats))
    return path


def test_the_one_that_is_behind_is_named_first(tmp_path, clock):
    watch = HangWatch(10.0)
    files = {rank: write(tmp_path / str(rank), 7 if rank else 8, 0, 1) for rank in (0, 1)}
    for beats in range(2, 6):
        assert watch.stuck(files) == []
        clock(3)
        for rank, path in files.items():
            write(path, 7 if rank else 8, 0, beats)
    stuck = watch.stuck(files)
    assert [(one.rank, one.step, one.alive) for one in stuck] == [(1, 7, True), (0, 8, True)]


def test_one_that_was_stopped_before_it_could_note_a_step_is_named_first(tmp_path, clock):
    watch = HangWatch(10.0)
    files = {0: write(tmp_path / "0", 8, 0, 1), 1: write(tmp_path / "1", -1, 0, 1)}
    for beats in range(2, 6):
        assert watch.stuck(files) == []
        clock(3)
        write(files[0], 8, 0, beats)
    first = watch.stuck(files)[0]
    assert str(first).startswith("rank 1: no step for 12 s since it began, and its process does")


def test_steps_and_polls_are_signs_of_life_and_the_start_takes_its_time(tmp_path, clock):
    watch = HangWatch(10.0)
    files = {0: tmp_path / "0", 1: tmp_path / "1", 2: tmp_path / "2"}  # 2 has written nothing
    for turn in range(10):
        write(files[0], 5, turn, turn)
        write(files[1], -1, 0, turn)
        assert watch.stuck(files) == []
        clock(8)


def test_never(tmp_path, clock):
    watch = HangWatch(0.0)
    files = {0: write(tmp_path / "0", 5, 0, 1)}
    assert watch.stuck(files) == []
    clock(1e9)
    assert watch.stuck(files) == []
