"""The last lines of a stream."""

from trainkit.processes.tails import Tail


def _tail(*parts: bytes) -> Tail:
    tail = Tail()
    for part in parts:
        tail.add(part)
    return tail


def test_lines_come_oldest_first_and_decoded() -> None:
    assert _tail(b"a\nb\n", b"c\xff\n\nun", b"finished").lines(4) == [
        "b",
        "c\ufffd",
        "",
        "unfinished",
    ]
    assert Tail().lines(5) == []


def test_colours_and_controls_are_left_out_and_of_a_bar_the_last_state_stays() -> None:
    text = b"\x1b[1;31mred\x1b[0m \x07bell\ttab\n\r1%\r2%\nend\r\n"
    assert _tail(text).lines(9) == ["red bell\ttab", "2%", "end"]


def test_memory_is_bounded() -> None:
    tail = Tail()
    for _ in range(5000):
        tail.add(b"x" * 999 + b"\n")
    for _ in range(5000):
        tail.add(b"y")
    assert sum(map(len, tail._chunks)) < 300_000
    assert len(tail._chunks) <= 1025
    assert tail.lines(2)[0] == "x" * 999


def test_a_long_line_is_cut() -> None:
    (line,) = _tail(*[b"z" * 65536] * 10).lines(1)
    assert line == "z" * 2000 + " …"
