import gzip
import struct

import pytest

from trainkit.data.idx import read_idx
from trainkit.errors import DataError, InputMissingError


def idx(shape, data, *, kind=0x08):
    head = bytes((0, 0, kind, len(shape)))
    return head + struct.pack(f">{len(shape)}I", *shape) + bytes(data)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_and_gzipped_files_are_read_whatever_their_name(written, pack):
    array = read_idx(written(pack(idx((2, 1, 3), range(6)))), dimensions=3)
    assert array.shape == (2, 1, 3)
    assert list(array.data) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with b''"),
        (b"<html>403 Forbidden</html>", "begins with b'<htm'.* web page"),
        (idx((2, 1, 3), range(6), kind=0x0D), "expected magic number 0x00000803.* 0x00000d03"),
        (idx((6,), range(6)), "expected magic number 0x00000803 .*found 0x00000801.* swapped"),
        (idx((2, 1, 3), range(6))[:9], "ends within its header"),
        (idx((2, 1, 3), range(5)), r"expected 6 bytes for shape \(2, 1, 3\) .*, found 5\."),
        (idx((2, 1, 3), range(7)), "found more"),
        (gzip.compress(idx((2, 1, 3), range(6)), mtime=0)[:-9], "broken or cut off"),
        (gzip.compress(idx((2, 1, 3), range(6)), mtime=0)[:-8] + bytes(8), "broken or cut off"),
        (b"\x1f\x8b\x08" + bytes(40), "broken or cut off"),
    ],
)
def test_damage_is_one_clear_error(written, content, said):
    path = written(content)
    with pytest.raises(DataError, match=said) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 65


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputMissingError, match="found nothing there") as caught:
        read_idx(tmp_path / "none", dimensions=1)
    assert caught.value.exit_code == 66
