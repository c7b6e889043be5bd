"""Output of real processes through the pump."""

import json
import os
import pty
import random
import re
import subprocess
import sys
import threading

import pytest

from trainkit.processes.output import OutputPump
from trainkit.waiting import Deadline, wait_until


class Collected:
    """What comes out at the other end of the pump."""

    def __init__(self, *, terminal=False, **options):
        self.data = {"out": b"", "err": b""}
        make = pty.openpty if terminal else os.pipe
        (self._out, out), (self._err, err) = make(), make()
        self._write = (out, err)
        self.pump = OutputPump(out=out, err=err, **options)
        self._threads = [
            threading.Thread(target=self._collect, args=(name, fd))
            for name, fd in (("out", self._out), ("err", self._err))
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, name, fd):
        while True:
            try:
                part = os.read(fd, 65536)
            except OSError:
                return
            if not part:
                return
            self.data[name] += part

    def run(self, code, rank=0, wait=True, **options):
        """Run Python code whose stdout and stderr go through the pump."""
        pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
        options = {"label": f"worker-0 r{rank}", "rank": rank} | options
        for stream, (read, _) in pipes.items():
            self.pump.add(read, stream=stream, **options)
        child = subprocess.Popen(
            [sys.executable, "-u", "-c", code],
            stdout=pipes["stdout"][1],
            stderr=pipes["stderr"][1],
            stdin=subprocess.PIPE,
        )
        for _, write in pipes.values():
            os.close(write)
        if wait:
            child.communicate(timeout=60)
        return child

    def end(self):
        self.pump.drain(60)
        self.pump.close()
        for fd in self._write:
            os.close(fd)
        for thread in self._threads:
            thread.join(60)
        os.close(self._out)
        os.close(self._err)
        return self.data["out"], self.data["err"]


def test_lines_begin_with_their_rank_and_go_to_their_stream():
    there = Collected()
    there.run("import sys; print('a'); print('b', file=sys.stderr)", rank=5)
    assert there.end() == (b"[worker-0 r5] a\n", b"[worker-0 r5] b\n")
    assert there.pump.tail(5) == ["b"]


def test_a_last_line_without_an_end_gets_one():
    there = Collected()
    there.run("print('a', end='')")
    assert there.end()[0] == b"[worker-0 r0] a\n"


def test_a_question_is_shown_before_its_line_ends_and_is_not_torn():
    there = Collected()
    asking = there.run("print('name? ', end=''); print(input()); print('done')", rank=0, wait=False)
    wait_until(lambda: b"name? " in there.data["out"], what="the question", deadline=Deadline(60))
    there.run("print('another')", rank=1)
    wait_until(lambda: b"another" in there.data["out"], what="the other", deadline=Deadline(60))
    asking.communicate(b"x\n", timeout=60)
    assert there.end()[0] == (
        b"[worker-0 r0] name? \n[worker-0 r1] another\n[worker-0 r0] x\n[worker-0 r0] done\n"
    )


def test_of_a_bar_a_log_has_the_last_state():
    there = Collected()
    there.run("[print(f'\\r{n}%', end='') for n in range(101)]; print()")
    assert there.end()[0] == b"[worker-0 r0] 100%\n"


def test_on_a_terminal_a_bar_moves_in_place():
    there = Collected(terminal=True)
    there.run(
        "import time\nfor n in (1, 50, 100): print(f'\\r{n}%', end=''); time.sleep(0.5)\nprint()"
    )
    out = there.end()[0]
    assert out.count(b"\n") == 1
    assert b"\r[worker-0 r0] 1%\x1b[K\r[worker-0 r0] 50%\x1b[K" in out


def test_bytes_that_are_no_text_stay_as_they_are(tmp_path):
    there = Collected()
    log = tmp_path / "log"
    there.run("import os; os.write(1, bytes(range(256)).replace(b'\\r', b''))", log=log)
    raw = bytes(range(256)).replace(b"\r", b"")
    assert log.read_bytes() == raw
    assert there.end()[0].replace(b"[worker-0 r0] ", b"") == raw + b"\n"


def test_a_very_long_line_stays_one_line_in_little_memory():
    there = Collected()
    there.run("import sys; [sys.stdout.write('x' * 65536) for _ in range(320)]; print()")
    out = there.end()[0]
    assert out == b"[worker-0 r0] " + b"x" * 65536 * 320 + b"\n"


def test_json():
    there = Collected(json=True)
    there.run("import os; os.write(1, b'caf\\xc3\\xa9 \\xff\\n')", rank=3)
    value = json.loads(there.end()[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value.pop("time"))
    expected = {"rank": 3, "label": "worker-0 r3", "stream": "stdout", "message": "café \udcff"}
    assert value == expected


def test_not_shown_means_in_the_file_alone(tmp_path):
    there = Collected()
    there.run("import sys; print('a', file=sys.stderr)", shown=False, log=tmp_path / "log")
    assert there.end() == (b"", b"")
    assert (tmp_path / "log").read_bytes() == b"a\n"
    assert there.pump.tail(0) == ["a"]


def test_a_closed_stdout_does_not_stop_the_files(tmp_path):
    read, write = os.pipe()
    os.close(read)
    pump = OutputPump(out=write, err=write)
    source, sink = os.pipe()
    pump.add(source, stream="stdout", label="a", rank=0, log=tmp_path / "log")
    for _ in range(100):
        os.write(sink, b"x" * 10000)
    os.close(sink)
    pump.drain(60)
    pump.close()
    os.close(write)
    assert (tmp_path / "log").stat().st_size == 1_000_000


def test_a_stdout_that_nobody_reads_does_not_hold_up_the_end():
    read, write = os.pipe()
    pump = OutputPump(out=write, err=write)
    source, sink = os.pipe()
    pump.add(source, stream="stdout", label="a", rank=0)
    writer = threading.Thread(target=os.write, args=(sink, b"x" * 1_000_000), daemon=True)
    writer.start()
    pump.drain(0.2)
    pump.close()
    os.close(read)  # which also ends the thread's write
    pump._thread.join(60)
    writer.join(60)
    os.close(sink)
    os.close(write)
    assert not pump._thread.is_alive()


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_pieces_every_byte_arrives_once(tmp_path, seed):
    rng = random.Random(seed)
    there = Collected()
    texts = {}
    writers = []
    for rank in range(4):
        alphabet = [b"a", b"b\n", b"\n", b"\xff", b"long" * 5000, b" "]
        pieces = [rng.choice(alphabet) for _ in range(300)]
        texts[rank] = b"".join(pieces) + b"\n"
        read, write = os.pipe()
        log = tmp_path / str(rank)
        there.pump.add(read, stream="stdout", label=f"r{rank}", rank=rank, log=log)
        writers.append(threading.Thread(target=_write, args=(write, texts[rank], seed + rank)))
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    out = there.end()[0]
    for rank, text in texts.items():
        assert (tmp_path / str(rank)).read_bytes() == text
    found = {rank: b"" for rank in texts}
    for line in out.splitlines(keepends=True):
        label, _, rest = line.partition(b"] ")
        found[int(label[2:])] += rest
    for rank, text in texts.items():
        assert found[rank].replace(b"\n", b"") == text.replace(b"\n", b"")


def _write(fd, data, seed):
    rng = random.Random(seed)
    while data:
        count = rng.choice((1, 10, 1000, 60000))
        data = data[os.write(fd, data[:count]) :]
    os.close(fd)
