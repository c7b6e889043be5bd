import pytest

from trainkit.data.images import scan_images
from trainkit.errors import DataError, InputMissingError


@pytest.fixture
def tree(tmp_path):
    def make(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    return make


def test_classes_are_folders_and_everything_is_in_one_order(tree):
    root = tree(
        "train/dog/b.JPEG", "train/dog/a.jpg", "train/cat/deep/z.png", "train/cat/notes.txt"
    )
    folder = scan_images(root, "train")
    assert folder.classes == ("cat", "dog")
    assert folder.paths == ("cat/deep/z.png", "dog/a.jpg", "dog/b.JPEG")
    assert folder.labels == (0, 1, 1)
    assert len(folder) == 3
    assert folder.root == root / "train"


def test_labels_of_another_split_are_those_of_training(tree):
    root = tree("val/dog/a.jpg")
    folder = scan_images(root, "val", classes=("cat", "dog"))
    assert (folder.classes, folder.labels) == (("cat", "dog"), (1,))
    with pytest.raises(DataError, match="found others too: dog"):
        scan_images(root, "val", classes=("cat",))


def test_a_missing_split_says_what_is_there(tree, tmp_path):
    root = tree("Train/cat/a.jpg", "LICENSE")
    with pytest.raises(InputMissingError, match=r"expected a folder val .* found LICENSE, Train"):
        scan_images(root, "val")
    with pytest.raises(InputMissingError, match="is the volume mounted"):
        scan_images(tmp_path / "none", "train")


def test_a_split_without_classes_or_images_is_refused(tree):
    with pytest.raises(DataError, match=r"one folder per class .* found none.* one flat folder"):
        scan_images(tree("val/ILSVRC2012_val_00000001.JPEG"), "val")
    with pytest.raises(InputMissingError, match=r"expected images .* in the 1 folder\(s\)"):
        scan_images(tree("train/cat/notes.txt"), "train")
