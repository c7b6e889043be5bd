"""What is left of saves goes; what was committed, or may be under way, stays."""

import os
import time

import pytest

from tests.checkpoint.admin.checkpoints import aside
from trainkit.checkpoint.admin.cleaning import find_leftovers, remove_leftover
from trainkit.checkpoint.format import pins
from trainkit.errors import InputMissingError

HOUR = 3600.0
TEMPORARY = ".MANIFEST.json.0123456789abcdef0123456789abcdef.tmp"


def found(root, **options):
    return {leftover.path: leftover.kind for leftover in find_leftovers(root.storage, **options)}


def grow_old(folder, seconds):
    then = time.time() - seconds
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


def test_uncommitted_folders_of_a_run_that_was_followed(root):
    old = root.save(1, commit=False)
    root.save(2)
    assert found(root) == {}  # the same process may be writing it
    root.save(3, generation=2, commit=False)
    assert found(root) == {old.name: "uncommitted"}


def test_uncommitted_folders_of_the_latest_run_only_when_nothing_is_written(root, disk):
    root.save(1)
    folder = root.save(2, commit=False)
    grow_old(disk / folder.name, 5 * HOUR)
    assert found(root) == {}
    assert found(root, older_than=6 * HOUR) == {}
    assert found(root, older_than=4 * HOUR) == {folder.name: "uncommitted"}
    (disk / folder.name / "ranks" / "rank00000.state.json").touch()  # the save goes on
    assert found(root, older_than=4 * HOUR) == {}


def test_a_folder_with_nothing_in_it(root, disk):
    root.save(1)
    (disk / "step-0000000009.g01-0009" / "model").mkdir(parents=True)
    assert found(root) == {}
    grow_old(disk / "step-0000000009.g01-0009", 5 * HOUR)
    assert found(root, older_than=4 * HOUR) == {"step-0000000009.g01-0009": "uncommitted"}


def test_marks_and_pins_without_a_folder(root):
    kept, gone = root.save(1), root.save(2)
    for folder in (kept, gone):
        pins.pin(root.storage, folder)
        aside(root.storage, folder)
    root.storage.write(".pins/README", [b"not ours"])
    root.storage.delete(gone.name)
    assert found(root) == {f".quarantine/{gone.name}": "mark", f".pins/{gone.name}": "pin"}


def test_temporary_files_when_they_are_old(root, disk):
    folder = root.save(1)
    paths = [disk / TEMPORARY, disk / folder.name / TEMPORARY, disk / ".generations" / TEMPORARY]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert found(root) == {}
    for path in paths[:2]:
        grow_old(path, 5 * HOUR)
    assert found(root, older_than=4 * HOUR) == {
        TEMPORARY: "temporary",
        f"{folder.name}/{TEMPORARY}": "temporary",
    }


def test_nothing_of_committed_folders_whatever_their_age(root, disk):
    for step in (1, 2, 3):
        folder = root.save(step, generation=step)
        (disk / folder.name / "notes.tmp").write_bytes(b"a person's")
        grow_old(disk / folder.name, 1000 * HOUR)
    aside(root.storage, folder)
    grow_old(disk, 1000 * HOUR)
    assert found(root, older_than=0) == {}


def test_removal(root):
    old = root.save(1, commit=False)
    kept = root.save(2, generation=2)
    pins.pin(root.storage, old)
    for leftover in find_leftovers(root.storage):
        assert remove_leftover(root.storage, leftover)
    assert found(root) == {f".pins/{old.name}": "pin"}
    for leftover in find_leftovers(root.storage):
        assert remove_leftover(root.storage, leftover)
    assert root.storage.names() == [".pins", kept.name]
    assert root.storage.names(".pins") == []


def test_what_was_committed_or_came_back_meanwhile_stays(root, disk):
    late = root.save(1, commit=False)
    gone = root.save(2, generation=2)
    aside(root.storage, gone)
    (disk / gone.name).rename(disk / "elsewhere")
    root.save(3, generation=2)
    leftovers = find_leftovers(root.storage)
    assert {leftover.kind for leftover in leftovers} == {"uncommitted", "mark"}
    (disk / late.name / "MANIFEST.json").write_bytes(b"")
    (disk / "elsewhere").rename(disk / gone.name)
    assert not any(remove_leftover(root.storage, leftover) for leftover in leftovers)
    assert (disk / late.name).exists()
    assert root.storage.names(".quarantine") == [gone.name]


def test_where_there_is_nothing(root):
    with pytest.raises(InputMissingError, match="holds no checkpoints"):
        find_leftovers(root.storage)
