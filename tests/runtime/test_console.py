import io

from trainkit.runtime.console import Console
from trainkit.runtime.context import Context


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Costly:
    """A value that may be read only when a line is due."""

    def __init__(self):
        self.reads = 0

    def item(self):
        self.reads += 1
        return 0.25


def test_a_pod_gets_a_line_at_the_start_and_at_the_end():
    out = io.StringIO()
    console = Console(enabled=True, interval=3600, out=out)
    value = Costly()
    for step in range(1, 101):
        console.log(step, 100, {"loss": value})
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "step 1/100  loss 0.25"
    assert lines[1].startswith("step 100/100  loss 0.25  ")
    assert "steps/s" in lines[1]
    assert value.reads == 2


def test_every_line_when_always_due():
    out = io.StringIO()
    console = Console(enabled=True, interval=0, out=out)
    for step in range(1, 4):
        console.log(step, None, {"loss": 0.5})
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "step 1",
        "step 2",
        "step 3",
    ]


def test_other_ranks_show_nothing_and_read_nothing():
    out = io.StringIO()
    value = Costly()
    console = Console(enabled=False, interval=0, out=out)
    console.log(1, 1, {"loss": value})
    console.close()
    assert out.getvalue() == ""
    assert value.reads == 0


def test_a_terminal_gets_a_bar():
    out = Terminal()
    console = Console(enabled=True, out=out)
    console.log(1, 10, {"loss": 0.5})
    console.close()
    assert "1/10" in out.getvalue()
    assert "loss 0.5" in out.getvalue()


class Clock:
    def __init__(self):
        self.now = 100.0
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return self.now


def context(console):
    """A context that has nothing but its console."""
    found = Context.__new__(Context)
    found._console = console
    found._quiet_from = found._quiet_until = 0
    return found


def test_few_steps_look_at_the_clock_and_each_line_is_in_time():
    out, clock = io.StringIO(), Clock()
    ctx = context(Console(enabled=True, interval=5, out=out, clock=clock))
    for step in range(1, 10_001):
        clock.now += 0.001
        ctx.log(step, steps=10_000, loss=0.5)
    shown = [int(line.split()[1].partition("/")[0]) for line in out.getvalue().splitlines()]
    assert shown == [1, 5001, 10_000]
    assert clock.looks < 200


def test_steps_that_become_slower_delay_a_line_by_little():
    out, clock = io.StringIO(), Clock()
    ctx = context(Console(enabled=True, interval=4, out=out, clock=clock))
    for step in range(1, 21):
        clock.now += 0.1 if step < 10 else 1.0
        ctx.log(step)
    assert [int(line.split()[1]) for line in out.getvalue().splitlines()][:2] == [1, 16]


def test_steps_that_begin_anew_are_shown():
    out, clock = io.StringIO(), Clock()
    ctx = context(Console(enabled=True, interval=5, out=out, clock=clock))
    for step in range(1000, 1100):
        clock.now += 0.001
        ctx.log(step)
    clock.now += 10
    ctx.log(1)
    assert [int(line.split()[1]) for line in out.getvalue().splitlines()] == [1000, 1]


def test_other_ranks_are_seldom_asked():
    console = Console(enabled=False)
    assert console.log(1, None, {}) > 1
