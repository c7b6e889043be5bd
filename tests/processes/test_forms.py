"""What lines of several processes look like together."""

import json

import pytest

from tests.processes.collecting import screen
from trainkit.processes.forms import Form, JsonLines, Origin, Terminal, Text, fitted
from trainkit.processes.lines import Cut, Lines, Piece, State

A = Origin("worker-1 r5", 5, "stdout")
B = Origin("worker-1 r6", 6, "stderr")
OWN = Origin("trainkit", None, "stderr", own=True)


def _written(form: Form, *cuts: tuple[Origin, Cut], now: float = 0.0) -> bytes:
    return b"".join(form.write(origin, cut, now) for origin, cut in cuts)


def test_each_line_has_a_prefix() -> None:
    found = _written(
        Text(), (A, Lines(b"a\n\nb\xff\r\n")), (B, Lines(b"c\n")), (OWN, Lines(b"d\n"))
    )
    assert found == b"[worker-1 r5] a\n[worker-1 r5] \n[worker-1 r5] b\xff\r\n[worker-1 r6] c\nd\n"


def test_without_a_label_there_is_no_prefix() -> None:
    bare = Origin("", 0, "stdout")
    cuts = ((bare, Lines(b"a\nb\n")), (bare, Piece(b"c", True, False)), (bare, State(b"d", True)))
    assert _written(Text(), *cuts) == b"a\nb\nc\nd\n"


def test_an_interrupted_line_goes_on_with_a_mark() -> None:
    found = _written(
        Text(),
        (A, Piece(b"one ", True, False)),
        (A, Piece(b"two ", False, False)),
        (B, Lines(b"b\n")),
        (A, Piece(b"three", False, True)),
        (A, Lines(b"a\n")),
    )
    assert found == (
        b"[worker-1 r5] one two \n[worker-1 r6] b\n[worker-1 r5]+ three\n[worker-1 r5] a\n"
    )


def test_the_end_alone_of_an_interrupted_line_is_not_written() -> None:
    cuts = ((A, Piece(b"a", True, False)), (B, Lines(b"b\n")), (A, Piece(b"\r", False, True)))
    assert _written(Text(), *cuts) == b"[worker-1 r5] a\n[worker-1 r6] b\n"


def test_states_of_a_bar_are_lines_in_a_log() -> None:
    cuts = (
        (A, Piece(b"0%", True, False)),
        (A, State(b"50%", False)),
        (B, Piece(b"x", True, False)),
        (A, State(b"100%", True)),
    )
    assert _written(Text(), *cuts) == (
        b"[worker-1 r5] 0%\n[worker-1 r5] 50%\n[worker-1 r6] x\n[worker-1 r5] 100%\n"
    )


def _objects(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.decode().splitlines()]


def test_json_has_one_object_a_line() -> None:
    found = _objects(
        _written(JsonLines(), (A, Lines(b'"a"\n\xff\x1b[1m\r\n')), (OWN, Lines(b"b\n")))
    )
    assert [set(one) for one in found] == [{"time", "rank", "label", "stream", "message"}] * 3
    assert [one["message"] for one in found] == ['"a"', "\ufffd\x1b[1m", "b"]
    assert [one["rank"] for one in found] == [5, 5, None]
    assert found[0]["stream"] == "stdout"
    assert found[2]["label"] == "trainkit"


def test_json_marks_what_goes_on_in_the_next_object() -> None:
    cuts = (
        (A, Piece(b"a\r", True, False)),
        (B, State(b"50%", False)),
        (A, Piece(b"b\r", False, True)),
        (B, State(b"", False)),
    )
    found = _objects(_written(JsonLines(), *cuts))
    assert [(one["message"], one.get("partial")) for one in found] == [
        ("a\r", True),
        ("50%", None),
        ("b", None),
    ]


def test_a_label_that_is_not_utf8() -> None:
    odd = Origin(b"h\xff".decode(errors="surrogateescape"), 1, "stdout")
    assert _written(Text(), (odd, Lines(b"a\n"))) == b"[h\xff] a\n"
    assert _objects(_written(JsonLines(), (odd, Lines(b"a\n"))))[0]["label"] == "h\ufffd"


def _terminal(columns: int = 80) -> Terminal:
    return Terminal(lambda: columns)


def test_a_bar_moves_in_place_and_lines_appear_above_it() -> None:
    found = _written(
        _terminal(),
        (A, State(b"long 10%", False)),
        (B, Lines(b"b\n")),
        (A, State(b"20%", False)),
        (B, Lines(b"c\nd\n")),
        (A, State(b"100%", True)),
        (B, Lines(b"e\n")),
    )
    assert screen(found) == [
        "[worker-1 r6] b",
        "[worker-1 r6] c",
        "[worker-1 r6] d",
        "[worker-1 r5] 100%",
        "[worker-1 r6] e",
        "",
    ]


def test_one_bar_has_the_last_row_and_others_appear_when_they_end() -> None:
    terminal = _terminal()
    found = _written(terminal, (A, State(b"10%", False)), (B, State(b"11%", False)))
    assert screen(found) == ["[worker-1 r5] 10%"]
    found += _written(terminal, (B, State(b"100%", True)), now=0.5)
    assert screen(found) == ["[worker-1 r6] 100%", "[worker-1 r5] 10%"]
    found += _written(terminal, (B, State(b"1%", False)), now=1.5)
    assert screen(found) == ["[worker-1 r6] 100%", "[worker-1 r6] 1%"], "the first was silent"
    found += _written(terminal, (A, State(b"20%", True)), now=1.6)
    assert screen(found)[-2:] == ["[worker-1 r5] 20%", "[worker-1 r6] 1%"]


def test_a_bar_that_wipes_itself() -> None:
    found = _written(_terminal(), (A, State(b"10%", False)), (A, State(b"", False)))
    assert screen(found) == [""]


def test_a_prompt_stays_below_lines_of_others() -> None:
    terminal = _terminal()
    found = _written(terminal, (A, Piece(b"Continue? ", True, False)), (B, Lines(b"b\n")))
    assert screen(found) == ["[worker-1 r6] b", "[worker-1 r5] Continue? "]
    found += _written(terminal, (A, Piece(b"yes", False, True)), (B, Lines(b"c\n")))
    assert screen(found)[1:3] == ["[worker-1 r5] Continue? yes", "[worker-1 r6] c"]


@pytest.mark.parametrize("text", [b"x" * 100, b"tab\t", b"x" * 10_000])
def test_what_cannot_be_moved_is_broken(text: bytes) -> None:
    terminal = _terminal()
    cuts = ((A, Piece(text, True, False)), (B, Lines(b"b\n")), (A, Piece(b"end", False, True)))
    assert screen(_written(terminal, *cuts)) == [
        "[worker-1 r5] " + text.decode(),
        "[worker-1 r6] b",
        "[worker-1 r5]+ end",
        "",
    ]


def test_a_prompt_takes_the_row_of_a_bar() -> None:
    terminal = _terminal()
    cuts = ((A, State(b"10%", False)), (B, Piece(b"Continue? ", True, False)))
    found = _written(terminal, *cuts)
    assert screen(found) == ["[worker-1 r6] Continue? "]
    found += _written(terminal, (A, State(b"20%", False)), now=5.0)
    assert screen(found) == ["[worker-1 r6] Continue? ", "[worker-1 r5] 20%"]
    found += _written(terminal, (B, Piece(b"y", False, True)), now=5.1)
    assert screen(found)[1:] == ["[worker-1 r6]+ y", "[worker-1 r5] 20%"]


def test_a_line_shown_in_part_turns_into_a_bar() -> None:
    terminal = _terminal()
    cuts = ((A, Piece(b"Loading", True, False)), (A, State(b"done", True)))
    assert screen(_written(terminal, *cuts)) == ["[worker-1 r5] done", ""]


def test_a_broken_row_is_left() -> None:
    terminal = _terminal()
    found = _written(terminal, (A, State(b"10%", False))) + terminal.break_line()
    assert found.endswith(b"\n")
    assert terminal.break_line() == b""


def test_a_bar_is_cut_to_the_terminal() -> None:
    wide = _written(_terminal(20), (A, State(b"\x1b[31m" + b"#" * 50, False)))
    assert screen(wide) == ["[worker-1 r5] #####"]
    assert wide.endswith(b"\x1b[0m"), "its colour does not go on"


def test_characters_of_two_columns() -> None:
    assert fitted("漢字漢字".encode(), 5) == "漢字".encode()
    assert fitted("e\u0301\xff".encode(), 2) == "e\u0301\xff".encode()
    assert fitted(b"\xff\xfeab", 3) == b"\xff\xfea"
