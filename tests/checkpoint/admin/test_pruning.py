"""`prune` keeps the newest that are whole, and whatever is pinned; looking removes nothing."""

import pytest

from trainkit.checkpoint.admin.pinning import pin_step, unpin_step
from trainkit.checkpoint.admin.pruning import find_surplus
from trainkit.errors import InputMissingError, UsageError


def test_the_newest_that_are_whole_stay(root, disk):
    folders = [root.save(step) for step in range(1, 6)]
    (disk / folders[4].name / "state" / "progress.json").unlink()
    before = sorted(disk.rglob("*"))
    surplus = find_surplus(root.storage, 2)
    assert sorted(folder.step for folder in surplus) == [1, 2]
    assert sorted(disk.rglob("*")) == before


def test_pinned_and_uncommitted_ones_stay(root):
    for step in (1, 2, 3, 4):
        root.save(step)
    root.save(5, commit=False)
    pin_step(root.storage, 1)
    assert sorted(folder.step for folder in find_surplus(root.storage, 1)) == [2, 3]


def test_at_least_one_stays(root, disk):
    with pytest.raises(UsageError, match="keep=0"):
        find_surplus(root.storage, 0)
    folder = root.save(1)
    (disk / folder.name / "state" / "progress.json").unlink()
    assert find_surplus(root.storage, 1) == []


def test_pins_by_step(root):
    first, second = root.save(1), root.save(1)
    assert pin_step(root.storage, 1) == pin_step(root.storage, 1) == second
    assert pin_step(root.storage, None, first) == first
    assert unpin_step(root.storage, 1) == [first, second]
    assert unpin_step(root.storage, 1) == []
    for do in (pin_step, unpin_step):
        with pytest.raises(InputMissingError, match="no checkpoint of step 9"):
            do(root.storage, 9)


def test_what_was_not_committed_cannot_be_pinned(root):
    root.save(1, commit=False)
    with pytest.raises(InputMissingError, match="is under way, or was cut off"):
        pin_step(root.storage, 1)


def test_a_pin_whose_folder_has_gone_can_be_taken_away(root):
    folder = root.save(1)
    pin_step(root.storage, 1)
    root.storage.delete(folder.name)
    assert unpin_step(root.storage, 1) == [folder]
