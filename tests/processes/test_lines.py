"""Cutting a stream into lines, pieces and states of bars."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.processes.lines import LIMIT, Cut, LineCutter, Lines, Piece, State


def _cutter(bar_interval: float = 10.0) -> LineCutter:
    return LineCutter(quiet=0.2, bar_interval=bar_interval)


def _together(cuts: list[Cut]) -> bytes:
    """The bytes that were written, where none of it was a bar."""
    text = b""
    for cut in cuts:
        assert not isinstance(cut, State)
        text += cut.text
        if isinstance(cut, Piece) and cut.last:
            text += b"\n"
    return text


def test_whole_lines_come_at_once_and_together() -> None:
    assert _cutter().feed(b"a\nb\n\nc\r\n", 0) == [Lines(b"a\nb\n\nc\r\n")]


def test_an_unfinished_line_waits_for_a_quiet_time() -> None:
    cutter = _cutter()
    assert cutter.due() is None
    assert cutter.feed(b"a\nContinue? ", 1.0) == [Lines(b"a\n")]
    assert cutter.due() == pytest.approx(1.2)
    assert cutter.show(1.2) == [Piece(b"Continue? ", True, False)]
    assert cutter.due() is None
    assert cutter.feed(b"y", 2.0) == []
    assert cutter.show(2.2) == [Piece(b"y", False, False)]
    assert cutter.feed(b"es\nb\nc", 3.0) == [Piece(b"es", False, True), Lines(b"b\n")]
    assert cutter.end() == [Piece(b"c", True, True)]
    assert cutter.end() == []


def test_a_line_that_comes_in_parts_before_the_quiet_time_is_whole() -> None:
    cutter = _cutter()
    assert cutter.feed(b"ab", 0) == []
    assert cutter.feed(b"cd\n", 0.1) == [Lines(b"abcd\n")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a é".encode()[:-1], b"a "),
        ("a €".encode()[:-1], b"a "),
        ("a 😀".encode()[:-2], b"a "),
        (b"a \x1b[3", b"a "),
        (b"a \x1b", b"a "),
        (b"a \x1b]0;title", b"a "),
        (b"a \x1b[31m", b"a \x1b[31m"),
        (b"a \xff", b"a "),  # may begin something as far as anybody knows
        (b"a \x80\x80\x80\x80", b"a \x80\x80\x80\x80"),
    ],
)
def test_a_piece_ends_between_characters(text: bytes, shown: bytes) -> None:
    cutter = _cutter()
    cutter.feed(text, 0)
    pieces = cutter.show(1)
    assert pieces == [Piece(shown, True, False)]
    assert cutter.due() is None, "what is held back is not due again and again"
    assert _together([*pieces, *cutter.end()]) == text + b"\n"


def test_a_line_without_end_is_passed_on_in_pieces_of_bounded_size() -> None:
    cutter = _cutter()
    chunk = b"x" * 50_000
    cuts: list[Cut] = []
    for _ in range(40):
        found = cutter.feed(chunk, 0)
        assert sum(len(cut.text) for cut in found) <= LIMIT + len(chunk)
        cuts += found
    cuts += cutter.feed(b"\n", 0)
    assert _together(cuts) == chunk * 40 + b"\n"
    pieces = [cut for cut in cuts if isinstance(cut, Piece)]
    assert len(pieces) == len(cuts)
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("byte", [b"\r", b"\x1b", b"\xc3"])
def test_no_byte_is_held_back_without_bound(byte: bytes) -> None:
    cutter = _cutter()
    for _ in range(10):
        cutter.feed(byte * 60_000, 0)
        assert len(cutter._text) <= LIMIT + 60_000


def test_states_of_a_bar_are_thinned_and_the_last_one_is_kept() -> None:
    cutter = _cutter()
    assert cutter.feed(b"\r 0%", 0.0) == []
    assert cutter.feed(b"\r10%", 4.0) == []
    assert cutter.due() == 10.0
    assert cutter.feed(b"\r20%", 9.0) == []
    assert cutter.show(10.0) == [State(b"20%", False)]
    assert cutter.due() is None, "nothing new"
    assert cutter.feed(b"\r30%", 11.0) == []
    assert cutter.due() == 20.0
    assert cutter.feed(b"\r40%\r100%\nnext\n", 12.0) == [State(b"100%", True), Lines(b"next\n")]


def test_what_a_bar_shows_already_is_not_told_again_at_its_end() -> None:
    cutter = _cutter()
    cutter.feed(b"\r100%", 0.0)
    assert cutter.show(10.0) == [State(b"100%", False)]
    assert cutter.feed(b"\n", 11.0) == []


def test_a_bar_whose_states_end_with_the_return() -> None:
    cutter = _cutter()
    assert cutter.feed(b"10%\r", 0.0) == []
    assert cutter.show(0.2) == []  # no newline followed: a bar
    assert cutter.due() == pytest.approx(10.2)
    assert cutter.feed(b"20%\r", 5.0) == []
    assert cutter.show(10.2) == [State(b"20%", False)]
    assert cutter.feed(b"done\n", 11.0) == [State(b"done", True)]


def test_a_return_before_the_newline_is_no_bar_however_it_is_cut() -> None:
    cutter = _cutter()
    assert cutter.feed(b"a\r", 0.0) == []
    assert cutter.feed(b"\nb\r\r\n", 0.1) == [Lines(b"a\r\nb\r\r\n")]


def test_bars_among_lines_of_one_read() -> None:
    cuts = _cutter().feed(b"a\n\r1%\r2%\nb\r\nc\n\r1%\r  \r\nd\n", 0)
    assert cuts == [Lines(b"a\n"), State(b"2%", True), Lines(b"b\r\nc\n"), Lines(b"d\n")]


def test_a_bar_after_a_line_that_was_shown_in_part() -> None:
    cutter = _cutter()
    cutter.feed(b"Loading", 0)
    assert cutter.show(1) == [Piece(b"Loading", True, False)]
    assert cutter.feed(b"\rLoaded\n", 2) == [State(b"Loaded", True)]
    assert cutter.feed(b"next\n", 3) == [Lines(b"next\n")]


def test_bars_below_each_other_are_thinned_too() -> None:
    cutter = _cutter()
    cuts = cutter.feed(b"\router 0/2", 0)
    for step in range(5):  # tqdm draws the inner bar a row lower, and goes up again
        for part in (b"\n", b"\rinner %d/5" % step, b"\x1b[A"):
            cuts += cutter.feed(part, 0)
    assert cuts == [State(b"outer 0/2", True)]
    assert cutter.show(10.0) == [State(b"inner 4/5", False)]
    assert cutter.feed(b"\rinner 5/5", 11) + cutter.feed(b"\n", 11) == [State(b"inner 5/5", True)]
    assert cutter.feed(b"next\n", 12) == [Lines(b"next\n")]


def test_all_states_for_a_terminal() -> None:
    cutter = _cutter(bar_interval=0.0)
    cutter.feed(b"\r10%", 1.0)
    assert cutter.due() == 1.0
    assert cutter.show(1.0) == [State(b"10%", False)]
    assert cutter.due() is None
    cutter.feed(b"\r   \r", 2.0)
    assert cutter.show(2.0) == [State(b"", False)]
    assert cutter.feed(b"\r20%\n", 3.0) == [State(b"20%", True)]


def test_a_bar_that_goes_on_for_ever_takes_no_memory() -> None:
    cutter = _cutter()
    for number in range(2000):
        cutter.feed(b"\r%d" % number * 100, number)
    assert len(cutter._text) < 10
    assert cutter.end() == [State(b"1999", True)]


_TEXT = st.text("ab€\x1b[m\n", max_size=40).map(str.encode) | st.binary(max_size=40)


@given(st.lists(_TEXT, max_size=20), st.integers())
def test_no_byte_is_lost_however_a_stream_is_cut(parts: list[bytes], seed: int) -> None:
    text = b"".join(parts).replace(b"\r", b"R")
    chance = random.Random(seed)
    cutter, cuts, at, now = _cutter(), list[Cut](), 0, 0.0
    while at < len(text):
        size = chance.randint(1, 8)
        cuts += cutter.feed(text[at : at + size], now)
        at += size
        now += chance.choice((0.0, 0.3))
        due = cutter.due()
        if due is not None and due <= now:
            cuts += cutter.show(now)
    cuts += cutter.end()
    whole = text if not text or text.endswith(b"\n") else text + b"\n"
    assert _together(cuts) == whole
