"""Text of the language model recipe: which files, which windows, and counting."""

import math
from collections import Counter

import pytest

from trainkit.errors import DataError, InputMissingError

torch = pytest.importorskip("torch")

from trainkit.recipes._text import Windows, load_text, ngram_bits  # noqa: E402


def tensor(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def windows(text, length, **options):
    return Windows(tensor(text), length, **options)


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"file {number}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.py").write_text("pass\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_one_file_in_ten_is_held_out_and_no_other_counts(folder):
    text = load_text(str(folder))
    assert text.num_files == 21
    parts = [bytes(part.tolist()) for part in (text.train, text.held_out)]
    files = [sorted(part.split(b"\0")[:-1]) for part in parts]
    assert [len(part) for part in files] == [19, 2]
    everything = [f"file {n}\n".encode() for n in range(20)] + [b"pass\n"]
    assert sorted(files[0] + files[1]) == sorted(everything)


def test_the_same_names_are_held_out_wherever_the_folder_is(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    for file in reversed(sorted(folder.rglob("*"))):
        if file.is_file():
            (other / file.relative_to(folder)).parent.mkdir(exist_ok=True)
            (other / file.relative_to(folder)).write_bytes(file.read_bytes())
    one, two = load_text(str(folder)), load_text(str(other))
    assert torch.equal(one.train, two.train)
    assert torch.equal(one.held_out, two.held_out)


def test_pythons_own_library_is_there_without_what_others_installed():
    text = load_text(None)
    assert text.num_files > 300
    assert len(text.train) > 4_000_000
    assert 0.02 < len(text.held_out) / len(text.train) < 0.5
    assert b"site-packages" not in text.source.encode()


def test_too_little_is_said(tmp_path):
    with pytest.raises(InputMissingError, match="no such folder"):
        load_text(str(tmp_path / "nowhere"))
    (tmp_path / "only.txt").write_text("one")
    with pytest.raises(DataError, match=r"two text files or more.*found 1"):
        load_text(str(tmp_path))
    with pytest.raises(DataError, match=r"expected 9 bytes.*--context 8; found 8"):
        windows(b"12345678", 8)


def test_windows_cover_the_text_once_and_ask_for_the_byte_after_each():
    text = b"abcdefghij"
    found = windows(text, 3)
    assert len(found) == 3
    for index in range(3):
        inputs, targets, number = found[index]
        assert number == index
        assert bytes(inputs.tolist()) == text[3 * index : 3 * index + 3]
        assert bytes(targets.tolist()) == text[3 * index + 1 : 3 * index + 4]


def test_fewer_windows_are_spread_over_the_text():
    found = windows(bytes(range(101)), 2, at_most=10)
    assert [found[i][0][0].item() for i in range(len(found))] == list(range(0, 100, 10))


def by_hand(train, asked, order):
    """Witten-Bell in plain Python: −log2 of the mean, over (context, byte) pairs."""

    def probability(context, byte):
        lower = probability(context[1:], byte) if context else 1 / 256
        after = Counter(
            train[i + len(context)]
            for i in range(len(train) - len(context))
            if train[i : i + len(context)] == context
        )
        times, kinds = sum(after.values()), len(after)
        return (after[byte] + kinds * lower) / (times + kinds) if times else lower

    bits = [-math.log2(probability(context[len(context) - order + 1 :], b)) for context, b in asked]
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_counting_is_what_plain_python_counts(order):
    train, held_out = b"the cat sat on the mat, that is that.", b"that cat is on the hat!?"
    found = windows(held_out, 4)
    places = [p for i in range(len(found)) for p in range(4 * i + 1, 4 * i + 5) if p >= order - 1]
    asked = [(held_out[:p], held_out[p]) for p in places]
    assert ngram_bits(tensor(train), found, order) == pytest.approx(
        by_hand(train, asked, order), rel=1e-12
    )
