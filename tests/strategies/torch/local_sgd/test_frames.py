"""The wire: whatever is cut, damaged or hostile is found out before a length is believed."""

import pickle
import random
import zlib

import pytest

from trainkit.strategies.torch.local_sgd.frames import (
    _CRC,
    _HEADER,
    FrameReader,
    Kind,
    ProtocolError,
    new_buffer,
    packed,
)


def read(data, sizes=None, place=lambda kind, number, size: new_buffer(size)):
    """Frames in ``data``, fed in pieces of ``sizes`` bytes."""
    reader, frames = FrameReader(place), []
    sizes = iter(sizes or [])
    while data:
        count = min(len(reader.target), len(data), next(sizes, 1 << 30))
        reader.target[:count] = data[:count]
        data = data[count:]
        frame = reader.received(count)
        if frame is not None:
            frames.append(frame)
    return frames, reader


def message(kind=Kind.PUSH, payload=b"abcd", **fields):
    return packed(kind, size=len(payload), **fields) + payload


def test_frames_arrive_as_they_were_sent_however_they_are_cut():
    sent = [
        message(Kind.HELLO, b"", rank=3, meta={"world_size": 4}),
        message(Kind.PUSH, bytes(range(256)) * 9, rank=3, round=1 << 40),
        message(Kind.LEAVE, b"", rank=3),
    ]
    for seed in range(30):
        chance = random.Random(seed)
        frames, reader = read(b"".join(sent), (chance.randint(1, 60) for _ in range(10_000)))
        assert [f.kind for f in frames] == [Kind.HELLO, Kind.PUSH, Kind.LEAVE]
        assert frames[0].meta == {"world_size": 4}
        assert bytes(frames[1].payload) == bytes(range(256)) * 9
        assert (frames[1].rank, frames[1].round) == (3, 1 << 40)
        assert len(reader.target) == 36


def test_every_flipped_bit_of_a_header_is_found():
    good = message(payload=b"")
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            read(bytes(bad))


def test_a_payload_is_received_where_it_is_to_stay():
    target = memoryview(bytearray(4))
    frames, _ = read(message(), place=lambda kind, number, size: target)
    assert frames[0].payload is target
    assert bytes(target) == b"abcd"


def test_a_payload_of_another_size_than_there_is_room_for_is_refused():
    with pytest.raises(ProtocolError, match="4 bytes, expected 2"):
        read(message(), place=lambda kind, number, size: memoryview(bytearray(2)))


@pytest.mark.parametrize(
    "text",
    [b"{not json", b"[1, 2]", b"\xff\xfe", pickle.dumps({"rank": 1})],
    ids=["cut", "list", "bytes", "pickle"],
)
def test_what_is_no_json_object_is_refused(text):
    head = _HEADER.pack(b"TKPS", Kind.HELLO, 0, 1, 0, 0, len(text), 0)
    with pytest.raises(ProtocolError):
        read(head + _CRC.pack(zlib.crc32(head)) + text)


def test_another_program_is_told_from_a_worker():
    with pytest.raises(ProtocolError, match="another program"):
        read(b"GET / HTTP/1.1\r\nHost: ps-0:2222\r\n\r\n" + b" " * 40)
