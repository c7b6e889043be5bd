"""The pump with real processes, pipes and terminals."""

import json
import os
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.processes.collecting import SECONDS, Reader, piped, screen
from trainkit.errors import EnvironmentFaultError
from trainkit.processes.output import OutputPump
from trainkit.waiting import Deadline, wait_until

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a shell command whose stdout and stderr a pump copies; ends what is left of it."""
    started: list[subprocess.Popen[bytes]] = []

    def run(
        pump: OutputPump, command: str, rank: int = 0, **more: object
    ) -> "subprocess.Popen[bytes]":
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=out_write, stderr=err_write
        )
        started.append(process)
        os.close(out_write)
        os.close(err_write)
        options: dict[str, object] = {"label": f"r{rank}", "rank": rank, **more}
        pump.add(out_read, stream="stdout", **options)  # type: ignore[arg-type]
        pump.add(err_read, stream="stderr", **options)  # type: ignore[arg-type]
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _say(process: "subprocess.Popen[bytes]", text: bytes = b"\n") -> None:
    """Let a process that waits in ``read`` go on."""
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


class _Streams:
    """A pump, and readers of what it writes to the two streams."""

    def __init__(self, *, json: bool = False) -> None:
        self.out, self._out_fd = piped()
        self.err, self._err_fd = piped()
        self.pump = OutputPump(json=json, out=self._out_fd, err=self._err_fd)
        os.close(self._out_fd)
        os.close(self._err_fd)

    def finish(self) -> tuple[bytes, bytes]:
        self.pump.drain(SECONDS)
        self.pump.close()
        return self.out.finish(), self.err.finish()


def test_each_stream_goes_to_its_own_with_prefix_and_in_order(start: Start, tmp_path: Path) -> None:
    streams = _Streams()
    log = tmp_path / "deep" / "0.log"
    start(streams.pump, r"printf 'a\nb \377\n'; echo e >&2; echo c", log=log)
    assert streams.finish() == (b"[r0] a\n[r0] b \xff\n[r0] c\n", b"[r0] e\n")
    assert sorted(log.read_bytes().splitlines()) == [b"a", b"b \xff", b"c", b"e"]


def test_a_prompt_is_shown_and_goes_on_where_it_stopped(start: Start) -> None:
    streams = _Streams()
    process = start(streams.pump, "printf 'Continue? '; read x; printf 'yes'; echo; echo done")
    streams.out.await_data(lambda data: data == b"[r0] Continue? ")
    _say(process)
    assert streams.finish()[0] == b"[r0] Continue? yes\n[r0] done\n"


def test_lines_of_others_do_not_tear_a_prompt(start: Start) -> None:
    streams = _Streams()
    process = start(streams.pump, "printf 'Continue? '; read x; echo yes")
    streams.out.await_data(lambda data: data.endswith(b"? "))
    start(streams.pump, "echo other", rank=1)
    streams.out.await_data(lambda data: b"other\n" in data)
    _say(process)
    assert streams.finish()[0] == b"[r0] Continue? \n[r1] other\n[r0]+ yes\n"


def test_words_of_our_own_do_not_tear_a_prompt(start: Start) -> None:
    streams = _Streams()
    process = start(streams.pump, "printf 'Continue? ' >&2; read x; echo yes >&2")
    streams.err.await_data(lambda data: data.endswith(b"? "))
    streams.pump.say("trainkit: rank 1 failed")
    streams.err.await_data(lambda data: b"failed\n" in data)
    _say(process)
    assert streams.finish()[1] == b"[r0] Continue? \ntrainkit: rank 1 failed\n[r0]+ yes\n"


_BAR = r"for i in 1 2 3 4 5; do printf '\r%s0%%' $i; done; printf '\r100%%\n'; echo next"


def test_of_a_bar_a_log_gets_the_last_state(start: Start, tmp_path: Path) -> None:
    streams = _Streams()
    start(streams.pump, _BAR, log=tmp_path / "log")
    assert streams.finish()[0] == b"[r0] 100%\n[r0] next\n"
    assert (tmp_path / "log").read_bytes() == b"\r10%\r20%\r30%\r40%\r50%\r100%\nnext\n"


def _raw_terminal() -> tuple[int, int]:
    """A pseudo-terminal that passes bytes on as they are: its master and its slave."""
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    modes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    termios.tcsetwinsize(slave, (24, 80))
    return master, slave


def test_on_a_terminal_a_bar_moves_in_place_below_lines_of_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = _raw_terminal()
    reader = Reader(master)
    pump = OutputPump(out=slave, err=slave)
    process = start(pump, r"printf '\r10%%' >&2; read x; printf '\r20%%' >&2; read x; echo >&2")
    reader.await_data(lambda data: screen(data) == ["[r0] 10%"])
    start(pump, "echo other", rank=1)
    reader.await_data(lambda data: screen(data) == ["[r1] other", "[r0] 10%"])
    _say(process)
    reader.await_data(lambda data: screen(data) == ["[r1] other", "[r0] 20%"])
    _say(process)
    pump.drain(SECONDS)
    pump.close()
    os.close(slave)
    assert screen(reader.finish()) == ["[r1] other", "[r0] 20%", ""]


def test_a_terminal_that_cannot_move_its_cursor_is_a_log(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    master, slave = _raw_terminal()
    reader = Reader(master)
    pump = OutputPump(out=slave, err=slave)
    start(pump, _BAR)
    pump.drain(SECONDS)
    pump.close()
    os.close(slave)
    assert reader.finish() == b"[r0] 100%\n[r0] next\n"


def test_a_process_may_have_a_terminal_of_its_own() -> None:
    streams = _Streams()
    master, slave = os.openpty()
    with subprocess.Popen(["sh", "-c", "test -t 1 && echo terminal"], stdout=slave):
        os.close(slave)
        streams.pump.add(master, stream="stdout", label="r0", rank=0)
        assert streams.finish()[0] == b"[r0] terminal\r\n"


def test_json(start: Start) -> None:
    streams = _Streams(json=True)
    start(streams.pump, r"echo one; printf 'b\377\n'; printf last", rank=3, label="worker-1 r3")
    before = datetime.now(UTC) - timedelta(hours=1)
    found = [json.loads(line) for line in streams.finish()[0].splitlines()]
    assert [one["message"] for one in found] == ["one", "b\ufffd", "last"]
    for one in found:
        assert list(one) == ["time", "rank", "label", "stream", "message"]
        assert (one["rank"], one["label"], one["stream"]) == (3, "worker-1 r3", "stdout")
        assert one["time"].endswith("Z")
        assert before < datetime.fromisoformat(one["time"]) < datetime.now(UTC)


def test_what_is_not_shown_is_logged_and_told_at_the_end(start: Start, tmp_path: Path) -> None:
    streams = _Streams()
    start(streams.pump, "seq 30 >&2", shown=False, log=tmp_path / "log")
    assert streams.finish() == (b"", b"")
    assert (tmp_path / "log").read_text().split() == [str(number) for number in range(1, 31)]
    assert streams.pump.tail(0) == [str(number) for number in range(11, 31)]
    assert streams.pump.tail(0, 2) == ["29", "30"]
    assert streams.pump.tail(7) == []


def test_a_rank_that_starts_again_appends_to_its_log_and_has_a_new_tail(
    start: Start, tmp_path: Path
) -> None:
    streams = _Streams()
    for number in (1, 2):
        start(streams.pump, f"echo {number} >&2", log=tmp_path / "log")
        streams.pump.drain(SECONDS)
        assert streams.pump.tail(0) == [str(number)]
    assert streams.finish()[1] == b"[r0] 1\n[r0] 2\n"
    assert (tmp_path / "log").read_text() == "1\n2\n"


def test_both_streams_in_one_pipe_and_one_file_do_not_tear_lines(
    start: Start, tmp_path: Path
) -> None:
    reader, write = piped()
    pump = OutputPump(out=write, err=write)
    os.close(write)
    # A part of a line, at once another line on the other stream, and then the rest.
    code = (
        "import os\n"
        "for i in range(300): os.write(1, b'a'*9); os.write(2, b'b\\n'); os.write(1, b'c\\n')"
    )
    start(pump, f'exec {sys.executable} -c "{code}"', log=tmp_path / "log")
    pump.drain(SECONDS)
    pump.close()
    expected = [b"aaaaaaaaac"] * 300 + [b"b"] * 300
    assert sorted((tmp_path / "log").read_bytes().splitlines()) == expected
    assert sorted(reader.finish().splitlines()) == [b"[r0] " + line for line in expected]


def test_processes_of_a_reader_who_went_away_go_on_and_are_logged(
    start: Start, tmp_path: Path
) -> None:
    gone_read, gone_write = os.pipe()
    err, err_write = piped()
    pump = OutputPump(out=gone_write, err=err_write)
    os.close(gone_read)
    os.close(gone_write)
    os.close(err_write)
    process = start(pump, "seq 1000000; echo end >&2", log=tmp_path / "log")
    assert process.wait(SECONDS) == 0
    pump.drain(SECONDS)
    pump.close()
    logged = (tmp_path / "log").read_bytes().split()
    assert len(logged) == 1_000_001
    said = err.finish()
    assert b"[r0] end\n" in said
    assert said.count(b"stdout takes no more (Broken pipe)") == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_discards_and_nothing_else_is_taken_for_it(
    start: Start, closed: str
) -> None:
    reader, write = piped()
    gone_read, gone = os.pipe()
    os.close(gone)  # what the pump opens first gets its number
    pump = (
        OutputPump(out=gone, err=write) if closed == "stdout" else OutputPump(out=write, err=gone)
    )
    os.close(write)
    closed_number, open_number = (1, 2) if closed == "stdout" else (2, 1)
    assert start(pump, f"seq 100000 >&{closed_number}").wait(SECONDS) == 0
    start(pump, f"echo shown >&{open_number}")
    pump.drain(SECONDS)
    pump.close()
    assert reader.finish() == b"[r0] shown\n"
    os.close(gone_read)


def test_a_full_disk_under_stdout_is_told_once(start: Start) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    err, err_write = piped()
    pump = OutputPump(out=full, err=err_write)
    os.close(full)
    os.close(err_write)
    assert start(pump, "seq 100000").wait(SECONDS) == 0
    pump.drain(SECONDS)
    pump.close()
    assert err.finish().count(b"No space left on device") == 1


def test_a_full_disk_under_a_log_is_told_once_and_output_goes_on(start: Start) -> None:
    streams = _Streams()
    start(streams.pump, "seq 100000", log=Path("/dev/full"))
    out, err = streams.finish()
    assert len(out.splitlines()) == 100_000
    assert err.count(b"'/dev/full': No space left on device") == 1


def test_a_socket_as_stdout(start: Start) -> None:
    ours, theirs = socket.socketpair()
    reader = Reader(theirs.detach())
    pump = OutputPump(out=ours.fileno())
    start(pump, "seq 100000")
    pump.drain(SECONDS)
    pump.close()
    ours.close()
    assert reader.finish() == b"".join(b"[r0] %d\n" % number for number in range(1, 100_001))


def test_descriptors_that_others_share_stay_blocking() -> None:
    _, write = piped()
    master, slave = os.openpty()
    pump = OutputPump(out=write, err=slave)
    read, far = os.pipe()
    pump.add(read, stream="stdout", label="r0", rank=0)
    assert os.get_blocking(write)
    assert os.get_blocking(slave)
    os.close(far)
    pump.close()
    for fd in (write, master, slave):
        os.close(fd)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_blocked_reader_blocks_processes_and_not_close(start: Start, kind: str) -> None:
    if kind == "pipe":
        read, write = os.pipe()
    elif kind == "terminal":
        read, write = os.openpty()
    else:
        read, write = (one.detach() for one in socket.socketpair())
    err, err_write = piped()
    pump = OutputPump(out=write, err=err_write)
    # Tells on stderr how many times 64 KiB it could write.
    code = "import os,sys\nwhile os.write(1, b'y\\n'*32768): sys.stderr.write('.\\n')"
    process = start(pump, f'exec {sys.executable} -c "{code}"', shown=True)
    seen = [-1]

    def stands() -> bool:
        before, seen[0] = seen[0], len(err.data)
        return before == seen[0] > 0

    wait_until(
        stands, what="the process to block", deadline=Deadline(SECONDS), pauses=iter([0.5] * 200)
    )
    assert process.poll() is None
    assert err.data.count(b".") < 100, "memory takes what the reader does not"
    before = _cpu()
    pump.drain(1.0)
    assert _cpu() - before < 0.5, "it waits busily"
    pump.close()
    assert process.wait(SECONDS) != 0, "its reader is gone"
    os.close(err_write)
    assert b"stdout takes no more (not read for 3 s)" in err.finish()
    os.close(read)
    os.close(write)


def test_drain_does_not_wait_for_a_pipe_that_a_left_over_process_holds(start: Start) -> None:
    streams = _Streams()
    # The one left over ends when this test lets go of the fifo that is its stdin.
    process = start(streams.pump, "exec 3<&0; (cat <&3 >/dev/null; echo late) & printf part")
    process.wait(SECONDS)
    streams.out.await_data(lambda data: data == b"[r0] part")
    streams.pump.drain(0.1)
    assert streams.out.await_data(lambda data: data.endswith(b"\n")) == b"[r0] part\n"
    assert process.stdin is not None
    process.stdin.close()
    assert streams.finish()[0] == b"[r0] part\n[r0]+ late\n"


def test_close_takes_what_is_in_the_pipes(start: Start) -> None:
    streams = _Streams()
    process = start(streams.pump, r"seq 100; printf '\r1%%\r2%%'; printf 'a\303' >&2; read x")
    _say(process)
    process.wait(SECONDS)
    streams.pump.close()
    out = streams.out.finish()
    assert out.endswith(b"[r0] 100\n[r0] 2%\n")
    assert streams.err.finish() == b"[r0] a\xc3\n"
    streams.pump.close()


def test_a_closed_pump_takes_nothing() -> None:
    streams = _Streams()
    streams.pump.close()
    read, write = os.pipe()
    with pytest.raises(ValueError, match="closed"):
        streams.pump.add(read, stream="stdout", label="r0", rank=0)
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)
    streams.pump.drain(SECONDS)


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    streams = _Streams()
    (tmp_path / "file").touch()
    read, write = os.pipe()
    path = tmp_path / "file" / "log"
    with pytest.raises(EnvironmentFaultError, match=r"cannot be opened.*Choose a folder"):
        streams.pump.add(read, stream="stdout", label="r0", rank=0, log=path)
    os.close(write)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(ValueError, match="expected a pipe"):
        streams.pump.add(file, stream="stdout", label="r0", rank=0)
    streams.finish()


_LONG = """
import os, resource, subprocess, sys
from trainkit.processes.output import OutputPump

json = sys.argv[1] == "json"
counted, write = os.pipe()
counter = subprocess.Popen(["wc", "-lc"], stdin=counted)
os.close(counted)
pump = OutputPump(json=json, out=write)
os.close(write)
def add(size, rank):
    read, write = os.pipe()
    command = f"head -c {size} /dev/zero | tr '\\\\0' x"
    process = subprocess.Popen(["sh", "-c", command], stdout=write)
    os.close(write)
    pump.add(read, stream="stdout", label=f"r{rank}", rank=rank)
    process.wait()
add(2_000_000, 0)  # warm
pump.drain(60)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
add(100_000_000, 1)
pump.drain(60)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
pump.close()
counter.wait()
print(grown)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_of_100_mb_takes_little_memory(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LONG, form], stdout=subprocess.PIPE, check=True, timeout=SECONDS
    )
    lines, size, grown = map(int, done.stdout.split())
    assert size >= 102_000_000
    assert grown < 8 * 1024, "kB"
    if form == "text":
        assert (lines, size) == (2, 102_000_000 + 2 * len("[r0] \n"))
