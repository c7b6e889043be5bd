"""Log files that streams may share."""

from pathlib import Path

from trainkit.processes.logs import LogFiles


def test_one_stream_alone_is_written_at_once(tmp_path: Path) -> None:
    files = LogFiles(quiet=0.2)
    file = files.open(tmp_path / "log")
    file.write("a", b"part", 0.0)
    assert file.due() is None
    assert (tmp_path / "log").read_bytes() == b"part"
    files.leave(file, "a")


def test_what_a_stream_has_begun_waits_for_its_newline_and_not_for_ever(tmp_path: Path) -> None:
    files = LogFiles(quiet=0.2)
    path = tmp_path / "log"
    file = files.open(path)
    assert files.open(tmp_path / "." / "log") is file
    file.write("a", b"one", 0.0)
    file.write("b", b"other\n", 0.1)
    assert path.read_bytes() == b"other\n"
    file.write("a", b"end\ntwo", 0.1)
    assert path.read_bytes() == b"other\noneend\n"
    assert file.due() is not None
    file.settle(0.2)
    assert path.read_bytes() == b"other\noneend\n"
    file.settle(0.5)
    assert path.read_bytes() == b"other\noneend\ntwo"
    file.write("b", b"x" * 5000, 0.6)
    assert path.read_bytes().endswith(b"x" * 5000), "too long to hold back"
    file.write("b", b"end", 0.7)
    files.leave(file, "b")
    assert path.read_bytes().endswith(b"xend")
    files.leave(file, "a")
    again = files.open(path)
    assert again is not file
    files.leave(again, "a")
