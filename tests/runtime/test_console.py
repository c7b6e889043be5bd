import io

from trainkit.runtime.console import Console


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
