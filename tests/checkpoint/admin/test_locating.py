"""Which checkpoint is meant by a URL and a step, and what is said where there is none."""

import pytest

from tests.checkpoint.admin.checkpoints import aside
from trainkit.checkpoint.admin.locating import find_step, newest_whole, of_step, open_root
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.errors import InputMissingError

NAME = "step-0000000100.g01-0000"


@pytest.mark.parametrize(
    ("url", "above"),
    [
        (f"/a/b/{NAME}", "/a/b"),
        (f"/a/b/{NAME}/", "/a/b"),
        (f"/{NAME}", "/"),
        (f"file:///a/b/{NAME}", "/a/b"),
        (f"memory://a/b/{NAME}/", "memory://a/b"),
    ],
)
def test_the_url_of_a_step_folder(url, above):
    storage, folder = open_root(url)
    assert (storage.url, folder) == (above, StepFolder(100, 1, 0))


def test_a_relative_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_root(NAME)[0].url == str(tmp_path)
    assert open_root("step-100")[0].url == str(tmp_path / "step-100")
    assert open_root("step-100")[1] is None


def test_the_newest_that_is_whole(root, disk):
    whole, damaged, marked, _ = (root.save(step, commit=step != 4) for step in (1, 2, 3, 4))
    (disk / damaged.name / "state" / "progress.json").unlink()
    aside(root.storage, marked)
    assert newest_whole(root.storage) == find_step(root.storage, None) == whole
    assert find_step(root.storage, 3) == marked
    assert find_step(root.storage, 2) == find_step(root.storage, 2, damaged) == damaged


def test_of_a_step_saved_twice_the_last_is_meant(root):
    first, second = root.save(1), root.save(1)
    assert find_step(root.storage, 1) == second
    assert of_step(root.storage, 1) == [second, first]
    assert find_step(root.storage, None, first) == first


def test_what_is_not_there(root, disk):
    root.save(1)
    cut_off = root.save(2, commit=False)
    with pytest.raises(InputMissingError, match=r"no checkpoint of step 7; it has 2, 1$"):
        find_step(root.storage, 7)
    with pytest.raises(InputMissingError, match="is under way, or was cut off"):
        find_step(root.storage, 2)
    with pytest.raises(InputMissingError, match="is under way, or was cut off"):
        find_step(root.storage, None, cut_off)
    with pytest.raises(InputMissingError, match="has no step-0000000009"):
        find_step(root.storage, None, StepFolder(9, 1, 0))
    with pytest.raises(InputMissingError, match="is not of step 2"):
        find_step(root.storage, 2, StepFolder(1, 1, 0))


def test_none_that_is_whole_says_why(root):
    aside(root.storage, root.save(1))
    root.save(2, commit=False)
    with pytest.raises(InputMissingError, match=r"no manifest now; step-0000000001\S+ is in quar"):
        newest_whole(root.storage)
