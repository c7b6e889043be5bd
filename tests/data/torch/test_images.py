import gc
import sys

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from trainkit.data.torch import ImageDataset, ShardedDataLoader, SyntheticImages
from trainkit.data.torch.images import image_transform
from trainkit.errors import DataError, DependencyError, InputMissingError, UsageError

pytestmark = pytest.mark.usefixtures("torchvision")


@pytest.fixture
def folder(tmp_path):
    kinds = {"train/cat/cmyk.jpg": "CMYK", "train/cat/grey.png": "L", "train/dog/rgb.jpg": "RGB"}
    for path, mode in {**kinds, "val/dog/alpha.png": "RGBA"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (60, 40), 100 if mode == "L" else None).save(tmp_path / path)
    return tmp_path


def test_images_of_every_mode_become_normalised_floats_with_labels(folder):
    train = ImageDataset.load(folder, train=True, image_size=32, with_ids=True)
    assert [(train[i][1], train[i][2]) for i in range(len(train))] == [(0, 0), (0, 1), (1, 2)]
    val = ImageDataset.load(folder, train=False, image_size=32, classes=train.classes)
    assert val.classes == ("cat", "dog")
    for dataset in (train, val):
        image = dataset[0][0]
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
    assert val[0][1] == 1
    black = [
        (0.0 - mean) / std
        for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    torch.testing.assert_close(val[0][0].mean(dim=(1, 2)), torch.tensor(black))


def test_without_a_transform_the_image_is_pillows(folder):
    dataset = ImageDataset(ImageDataset.load(folder, train=True).folder)
    assert dataset[1][0].mode == "RGB"
    assert dataset[1][0].getpixel((0, 0)) == (100, 100, 100)


def failure(loader):
    """What the loader fails with; the error alone, since its traceback holds the workers."""
    try:
        list(loader)
    except DataError as error:
        said, exit_code = str(error), error.exit_code
    gc.collect()  # torch raises again what came from a worker, in a frame that refers to itself
    return said, exit_code


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(folder, content, num_workers):
    path = folder / "train/dog/rgb.jpg"
    path.write_bytes(path.read_bytes()[:-200] if content == "cut" else content)
    dataset = ImageDataset.load(folder, train=True, image_size=32)
    loader = ShardedDataLoader(DataLoader(dataset, 3, num_workers=num_workers))
    said, exit_code = failure(loader)
    assert "rgb.jpg cannot be decoded" in said
    assert exit_code == 65


def test_an_image_that_went_away_is_named(folder):
    dataset = ImageDataset.load(folder, train=True)
    (folder / "train/dog/rgb.jpg").unlink()
    with pytest.raises(InputMissingError, match=r"rgb\.jpg was there at the start and is gone"):
        dataset[2]


def test_missing_packages_are_named_with_their_extra(folder, monkeypatch):
    scanned = ImageDataset.load(folder, train=True).folder
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(DependencyError, match=r'pip install "trainkit\[imagenet\]"'):
        image_transform(train=True)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DependencyError, match="needs Pillow"):
        ImageDataset(scanned)


def test_synthetic_images_are_the_same_for_the_same_seed():
    def make(seed):
        return SyntheticImages(100, image_size=8, num_classes=5, seed=seed, pool=7, with_ids=True)

    one, again, other = make(1), make(1), make(2)
    assert len(one) == 100
    assert torch.equal(one[93][0], again[93][0])
    assert not torch.equal(one[93][0], other[93][0])
    assert torch.equal(one[2][0], one[9][0])  # of one pool
    assert one[2][1] == one[9][1]
    assert {one[i][1] for i in range(100)} <= set(range(5))
    with pytest.raises(IndexError):
        one[100]
    images, labels, ids = next(iter(ShardedDataLoader(DataLoader(one, 16, shuffle=True))))
    assert images.shape == (16, 3, 8, 8)
    for image, label, index in zip(images, labels, ids, strict=True):
        assert torch.equal(image, one[index][0])
        assert label == one[index][1]


@pytest.mark.parametrize("change", [{"length": 0}, {"image_size": 0}, {"pool": 0}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(UsageError, match="expected numbers of 1 or more"):
        SyntheticImages(**{"length": 1, "image_size": 1, **change})
