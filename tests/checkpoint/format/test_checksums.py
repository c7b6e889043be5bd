"""Checksums do not depend on how the bytes came in."""

import random

import pytest
import xxhash

from trainkit.checkpoint.format.checksums import (
    CHUNK_BYTES,
    ChunkHasher,
    FileRecord,
    Hashing,
    record_of,
    unchanged,
)


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 5]
)
def test_a_checksum_per_chunk_however_the_bytes_are_cut(size):
    data = random.Random(size).randbytes(size)
    hasher = ChunkHasher()
    pieces, begin = [], 0
    for piece in (1, 7, CHUNK_BYTES // 2 + 3, CHUNK_BYTES * 2, 10**9):
        pieces.append(data[begin : begin + piece])
        begin += piece
    assert b"".join(hasher.passing(pieces)) == data
    expected = [
        xxhash.xxh3_128_hexdigest(data[i : i + CHUNK_BYTES]) for i in range(0, size, CHUNK_BYTES)
    ]
    assert hasher.record == FileRecord(size, tuple(expected))
    assert hasher.record == hasher.record  # asking changes nothing
    assert FileRecord.from_json(hasher.record.to_json()) == hasher.record


@pytest.mark.parametrize(
    "value",
    [{"size": -1, "xxh3_128": []}, {"size": 1, "xxh3_128": []}, {"size": 0, "xxh3_128": ["x"]},
     {"size": "1", "xxh3_128": ["x"]}, {"size": 1, "xxh3_128": [1]},
     {"size": True, "xxh3_128": ["x"]}],
)  # fmt: skip
def test_records_that_make_no_sense(value):
    with pytest.raises(ValueError, match="checksums"):
        FileRecord.from_json(value)


@pytest.mark.parametrize(
    ("size", "places", "ranges"),
    [
        (3, [], [(0, 24)]),
        (3, [0], [(8, 24)]),
        (3, [9], [(0, 8), (16, 24)]),
        (3, [23], [(0, 16)]),
        (3, [1, 9, 17], []),
        (0, [], []),
    ],
)
def test_what_two_files_have_in_common(size, places, ranges):
    old = bytes(size * CHUNK_BYTES)
    new = bytearray(old)
    for place in places:
        new[place << 20] = 1
    found = unchanged(record_of(new), record_of(old))
    assert found == tuple((begin << 20, end << 20) for begin, end in ranges)


def test_files_of_other_lengths_have_whole_chunks_in_common():
    old, short = bytes(2 * CHUNK_BYTES), bytes(CHUNK_BYTES + 3)
    assert unchanged(record_of(short), record_of(old)) == ((0, CHUNK_BYTES),)
    assert unchanged(record_of(old), record_of(short)) == ((0, CHUNK_BYTES),)
    assert unchanged(record_of(short), record_of(short)) == ((0, CHUNK_BYTES + 3),)


def test_each_chunk_is_hashed_once_and_not_before_it_is_there():
    late = {"a": random.Random(0).randbytes(2 * CHUNK_BYTES + 3), "b": b"", "c": b"xyz"}
    files = {path: memoryview(bytearray(len(data))) for path, data in late.items()}
    asked = []

    def ready(path, begin, end):
        asked.append((path, begin, end))
        files[path][begin:end] = late[path][begin:end]

    hashing = Hashing(files, ready)
    hashing.ready("a", CHUNK_BYTES, CHUNK_BYTES + 1)
    assert asked == [("a", CHUNK_BYTES, 2 * CHUNK_BYTES)]
    hashing.ready("a", 0, 2 * CHUNK_BYTES)
    assert hashing.records() == {path: record_of(data) for path, data in late.items()}
    assert sorted(asked) == sorted(
        [("a", n * CHUNK_BYTES, min((n + 1) * CHUNK_BYTES, len(late["a"]))) for n in range(3)]
        + [("c", 0, 3)]
    )
