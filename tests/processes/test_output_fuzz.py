"""Random bytes in random pieces from several processes: none is lost, added or out of place."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.collecting import SECONDS, piped
from trainkit.processes.output import OutputPump

_WRITER = """
import os, random, sys, time
chance = random.Random(int(sys.argv[1]))
with open(sys.argv[2], "rb") as file:
    text = file.read()
while text:
    size = chance.choice((1, 3, 17, 500, 5000, 100000))
    piece, text = text[:size], text[size:]
    while piece:
        piece = piece[os.write(1, piece):]
    if chance.random() < 0.03:
        time.sleep(0.25)  # longer than a line is waited for
"""


def _text(chance: random.Random) -> bytes:
    r"""Lines short, empty and long, of any bytes but a ``\r`` that would make a bar."""
    parts = []
    for _ in range(chance.randint(20, 400)):
        kind = chance.random()
        if kind < 0.02:
            parts.append(chance.randbytes(200_000).replace(b"\n", b"N"))
        elif kind < 0.3:
            parts.append(chance.randbytes(chance.randint(0, 80)))
        elif kind < 0.6:
            parts.append("[r1] é€😀\x1b[31mred\x1b[0m".encode() * chance.randint(0, 5))
        else:
            parts.append(b"[r0]+ step %d" % chance.randint(0, 10**6))
        if chance.random() < 0.9:
            parts.append(b"\n")
    return b"".join(parts).replace(b"\r", b"R")


def _from_text(output: bytes, rank: int) -> bytes:
    first, more = b"[r%d] " % rank, b"[r%d]+ " % rank
    lines: list[list[bytes]] = []
    for line in output.split(b"\n"):
        if line.startswith(first):
            lines.append([line.removeprefix(first)])
        elif line.startswith(more):
            lines[-1].append(line.removeprefix(more))
    return b"".join(b"".join(line) + b"\n" for line in lines)


def _from_json(output: bytes, rank: int) -> str:
    text = ""
    for line in output.splitlines():
        one = json.loads(line)
        if one["rank"] == rank:
            text += one["message"] + ("" if one.get("partial") else "\n")
    return text


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_or_out_of_place(seed: int, form: str, tmp_path: Path) -> None:
    chance = random.Random(seed)
    reader, write = piped()
    pump = OutputPump(json=form == "json", out=write)
    os.close(write)
    texts, processes = [], []
    for rank in range(3):
        texts.append(_text(chance))
        source = tmp_path / f"{rank}.source"
        source.write_bytes(texts[-1])
        read, far = os.pipe()
        command = [sys.executable, "-c", _WRITER, str(seed * 10 + rank), str(source)]
        processes.append(subprocess.Popen(command, stdout=far))
        os.close(far)
        log = tmp_path / f"{rank}.log"
        pump.add(read, stream="stdout", label=f"r{rank}", rank=rank, log=log)
    assert [process.wait(SECONDS) for process in processes] == [0, 0, 0]
    pump.drain(SECONDS)
    pump.close()
    output = reader.finish()
    for rank, text in enumerate(texts):
        assert (tmp_path / f"{rank}.log").read_bytes() == text
        ended = text if text.endswith(b"\n") else text + b"\n"
        if form == "text":
            assert _from_text(output, rank) == ended
        else:
            assert _from_json(output, rank) == ended.decode(errors="replace")
