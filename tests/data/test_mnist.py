import gzip
import logging
import shutil
import struct
from importlib.resources import files
from pathlib import Path

import pytest

from trainkit.data import mnist
from trainkit.data.mnist import load_mnist
from trainkit.errors import DataError, InputMissingError, UsageError

EMBEDDED = Path(str(files("trainkit.data") / "mnist-10k"))


@pytest.fixture(autouse=True)
def no_mirrors_from_outside(monkeypatch):
    monkeypatch.delenv("TRAINKIT_MNIST_URL", raising=False)


def images(count=3, side=28):
    return b"\0\0\x08\x03" + struct.pack(">3I", count, side, side) + bytes(count * side * side)


def labels(*numbers):
    return b"\0\0\x08\x01" + struct.pack(">I", len(numbers)) + bytes(numbers)


def put(folder, names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), contents=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, contents or (images(), labels(1, 2, 3)), strict=True):
        packed = gzip.compress(content) if name.endswith(".gz") else content
        (folder / name).write_bytes(packed)
    return folder


@pytest.mark.parametrize(("train", "count"), [(True, 8000), (False, 2000)])
def test_the_digits_that_come_with_trainkit_need_nothing_and_say_they_are_few(train, count, caplog):
    with caplog.at_level(logging.INFO):
        arrays = load_mnist(train=train)
    assert arrays.images.shape == (count, 28, 28)
    assert arrays.labels.shape == (count,)
    assert arrays.embedded
    assert "a subset of MNIST" in caplog.text


@pytest.mark.parametrize("below", ["", "MNIST/raw", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_files_are_found_in_all_usual_layouts_and_names(tmp_path, below, dot, end):
    names = (f"train-images{dot}idx3-ubyte{end}", f"train-labels{dot}idx1-ubyte{end}")
    put(tmp_path / below, names)
    arrays = load_mnist(train=True, data_dir=tmp_path)
    assert arrays.images.shape == (3, 28, 28)
    assert list(arrays.labels.data) == [1, 2, 3]
    assert arrays.source == str(tmp_path / below)
    assert not arrays.embedded


def test_the_test_images_have_another_name(tmp_path):
    put(tmp_path, ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))
    assert load_mnist(train=False, data_dir=str(tmp_path)).images.shape[0] == 3
    with pytest.raises(InputMissingError, match="expected train-images-idx3-ubyte"):
        load_mnist(train=True, data_dir=tmp_path)


def test_what_is_missing_is_said_with_what_is_there(tmp_path):
    put(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputMissingError) as caught:
        load_mnist(train=True, data_dir=tmp_path)
    said = str(caught.value)
    assert "train-labels-idx1-ubyte[.gz]" in said
    assert "found train-images-idx3-ubyte" in said
    assert "--data-url" in said
    with pytest.raises(InputMissingError, match="is the volume mounted"):
        load_mnist(train=True, data_dir=tmp_path / "mnt")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ((images(3), labels(1, 2)), "has 3, .* has 2. Do they come from the same data set"),
        ((images(0), labels()), "expected as many images as labels, and some"),
        ((images(3, side=27), labels(1, 2, 3)), "28 x 28 pixels .* found .27, 27"),
        ((images(3), labels(1, 26, 3)), "labels from 0 to 9 .* found 26"),
        ((labels(1, 2, 3), images(3)), "Are images and labels swapped"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, contents, said):
    put(tmp_path, contents=contents)
    with pytest.raises(DataError, match=said):
        load_mnist(train=True, data_dir=tmp_path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_mirrors_from_an_argument_or_the_environment_are_fetched_once(home, tmp_path, monkeypatch):
    mirror = shutil.copytree(EMBEDDED, tmp_path / "mirror")
    url = f"file://{tmp_path}/nothing, file://{mirror}/"
    first = load_mnist(train=False, data_url=url)
    assert first.images.shape[0] == 2000
    assert not first.embedded
    shutil.rmtree(mirror)
    assert load_mnist(train=False, data_url=url).images == first.images
    monkeypatch.setenv("TRAINKIT_MNIST_URL", url)
    assert load_mnist(train=False).images == first.images
    with pytest.raises(InputMissingError, match="could not be fetched") as caught:
        load_mnist(train=True)
    assert "--data-dir" in str(caught.value)
    assert "come with trainkit" in str(caught.value)


def test_what_is_fetched_goes_to_the_folder_of_data_if_there_is_one(tmp_path):
    volume = tmp_path / "volume"
    arrays = load_mnist(train=False, data_dir=volume, data_url=f"file://{EMBEDDED}")
    assert arrays.source == str(volume)
    assert {path.name for path in volume.iterdir()} == {
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    }


def test_files_in_the_folder_come_before_any_mirror(tmp_path):
    put(tmp_path)
    arrays = load_mnist(train=True, data_dir=tmp_path, data_url="https://not.used.invalid")
    assert arrays.images.shape[0] == 3


def test_a_damaged_mirror_never_gets_into_the_cache(home, tmp_path):
    put(tmp_path / "m", ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"))
    (tmp_path / "m" / "train-images-idx3-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(DataError, match="damaged: expected an IDX file"):
        load_mnist(train=True, data_url=f"file://{tmp_path}/m")
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_checksum_cannot_be_that_of_a_folder():
    with pytest.raises(UsageError, match="a checksum belongs to one file"):
        load_mnist(train=True, data_url="https://host.invalid/mnist#sha256=00")


def test_a_home_that_cannot_be_written_is_no_obstacle(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    folder = mnist._cache_folder("https://host.invalid")
    assert not folder.is_relative_to(tmp_path / "file")
    assert folder != mnist._cache_folder("https://other.invalid")
