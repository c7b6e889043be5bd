"""What is left of saves goes; what was committed, or may be under way, stays."""

import os
import time

import pytest

from tests.checkpoint.admin.checkpoints import aside
from trainkit.checkpoint.admin.cleaning import find_leftovers, remove_leftover
from trainkit.checkpoint.format import pins
from trainkit.cli import main
from trainkit.errors import InputMissingError, NoPermissionError
from trainkit.storage import LocalStorage, ObjectStorage, Upload

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


def cut_off_upload(storage, path):
    """What a kill in the middle of an upload leaves on a server."""
    place = {"Bucket": "tests", "Key": storage._key(path).partition("/")[2]}
    begun = storage._fs.call_s3("create_multipart_upload", **place)
    storage._fs.call_s3(
        "upload_part", **place, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 2048
    )


def test_uploads_that_were_cut_off_are_aborted_when_they_are_old(s3, capsys):
    storage = ObjectStorage(s3)
    storage.create(".generations/0000000001", b"{}")
    large = "step-0000000007.g01-0000/model/model.safetensors"
    cut_off_upload(storage, large)
    cut_off_upload(storage, "somebody/elses")
    arguments = ["checkpoint", "gc", s3]

    assert main([*arguments]) == 0
    assert "0 leftovers" in capsys.readouterr().out
    assert len(storage.uploads()) == 2  # it may be under way

    assert main([*arguments, "--dry-run", "--older-than", "0"]) == 0
    assert f"would be removed: {large} (upload, 2.0 KiB" in capsys.readouterr().out
    assert len(storage.uploads()) == 2

    assert main([*arguments, "--older-than", "0"]) == 0
    assert f"removed: {large}" in capsys.readouterr().out
    (other,) = storage.uploads()
    assert other.path == "somebody/elses"
    storage.abort_upload(other)


class Store(LocalStorage):
    """Answers with what it is given when it is asked for uploads."""

    answer: list | Exception

    def uploads(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def abort_upload(self, upload):
        return upload.identifier != "ended"


def test_an_upload_whose_age_nobody_knows_stays(root, disk):
    root.save(1)
    store = Store(disk)
    path, now = "step-0000000002.g01-0001/model/model.safetensors", time.time()
    store.answer = [
        Upload(path, "new", 5, now - 4 * HOUR),
        Upload(path, "old", 5, now - 6 * HOUR),
        Upload(path, "ended", 5, now - 7 * HOUR),
        Upload(path, "unknown", 5, None),
    ]
    found = find_leftovers(store, older_than=5 * HOUR)
    assert [leftover.upload.identifier for leftover in found] == ["old", "ended"]
    assert [remove_leftover(store, leftover) for leftover in found] == [True, False]


@pytest.mark.parametrize(
    "refusal", [NoPermissionError(13, "Access Denied", "s3://b/run"), OSError(1, "no such method")]
)
def test_a_store_that_does_not_tell_of_uploads_is_tidied_all_the_same(root, disk, refusal, caplog):
    old = root.save(1, commit=False)
    root.save(2, generation=2)
    store = Store(disk)
    store.answer = refusal
    assert [leftover.path for leftover in find_leftovers(store)] == [old.name]
    assert "uploads that were cut off could not be looked for" in caplog.text
    store.answer = OSError(5, "503 SlowDown")
    with pytest.raises(OSError, match="503 SlowDown"):
        find_leftovers(store)
