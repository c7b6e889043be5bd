"""The termination message is cut to fit and written where the kubelet looks, or not at all."""

import os

import pytest

from trainkit.config import settings
from trainkit.launch import termination
from trainkit.launch.termination import cut, cut_middle, write_termination_message


def test_it_is_written_in_place(tmp_path):
    path = tmp_path / "log"
    path.write_text("from an earlier attempt, and longer than what comes now")
    inode = path.stat().st_ino
    write_termination_message("short\n", str(path))
    assert path.read_text() == "short\n"
    assert path.stat().st_ino == inode


def test_a_file_that_is_named_is_made(tmp_path):
    write_termination_message("é" * 5000 + "\ud800", str(tmp_path / "new"))
    written = (tmp_path / "new").read_bytes()
    assert len(written) <= 4096
    assert written.decode().startswith("éé")


@pytest.mark.skipif(os.path.exists("/dev/termination-log"), reason="this is a pod")
def test_the_default_is_not_made():
    write_termination_message("text", None)
    assert not os.path.exists("/dev/termination-log")


def test_the_default_is_written_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(termination, "_DEFAULT", str(tmp_path / "log"))
    write_termination_message("text", None)
    assert not (tmp_path / "log").exists()
    (tmp_path / "log").touch()
    write_termination_message("text", None)
    assert (tmp_path / "log").read_text() == "text"


def test_where_it_cannot_be_written_nothing_happens(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "no" / "folder", tmp_path, tmp_path / "pipe", tmp_path / "a\0b"):
        write_termination_message("text", str(path))
    write_termination_message("text", "/dev/full")


def test_the_setting():
    assert settings({}).termination_log is None
    assert settings({"TRAINKIT_TERMINATION_LOG": "/x"}).termination_log == "/x"


@pytest.mark.parametrize("shorten", [cut, cut_middle])
@pytest.mark.parametrize("text", ["é€🙂" * 300, "line é\n" * 300, "", "x" * 1000])
def test_what_is_cut_fits_and_is_text(shorten, text):
    for size in range(0, 400):
        shown = shorten(text, size)
        assert len(shown.encode()) <= size
        assert shown == text or len(text.encode()) > size


def test_the_middle_goes_first():
    text = "".join(f"line {n}\n" for n in range(500))
    shown = cut_middle(text, 300)
    assert shown.startswith("line 0\n")
    assert shown.endswith("line 499\n")
    head, mark, tail = shown.partition("\n… ")
    assert mark
    left_out = int(tail.split()[0])
    assert left_out == len(text) - len(head) - len(tail.partition("…\n")[2])
