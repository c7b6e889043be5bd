"""Every byte counts, nothing else does, and memory and threads stay bounded."""

import errno
import os
import threading

import pytest

from tests.checkpoint.admin.checkpoints import Counting, aside, f32, flip, zeros
from trainkit.checkpoint.admin.survey import State, list_root
from trainkit.checkpoint.admin.verification import bytes_to_check, exit_code, verify
from trainkit.checkpoint.format import manifest
from trainkit.checkpoint.format.checksums import CHUNK_BYTES
from trainkit.checkpoint.save.retention import remove_step
from trainkit.errors import NoPermissionError, RetryableError

FILES = [
    "MANIFEST.json",
    "model/model.safetensors",
    "state/progress.json",
    "ranks/rank00000.state.json",
]


def check(storage, chosen=None, **options):
    return verify(storage, list_root(storage), chosen, **options)


def test_whole_ones(root, disk):
    folders = [root.save(step) for step in (1, 2)]
    verdicts = check(root.storage)
    assert [v.folder for v in verdicts] == folders[::-1]
    assert {v.state for v in verdicts} == {State.COMMITTED}
    assert verdicts[0].num_files == 4
    size = sum(p.stat().st_size for p in (disk / folders[1].name).rglob("*") if p.is_file())
    assert verdicts[0].num_bytes == size
    assert exit_code(verdicts) == 0


@pytest.mark.parametrize("path", FILES)
def test_any_byte_of_any_file(root, disk, path):
    folder = root.save(1)
    whole = (disk / folder.name / path).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 25)):
        flip(disk / folder.name / path, position)
        (verdict,) = check(root.storage)
        assert verdict.state is State.DAMAGED, position
        assert verdict.problems[0].startswith(f"{folder.name}/{path}"), position
        assert exit_code([verdict]) == 65
        (disk / folder.name / path).write_bytes(whole)
    assert exit_code(check(root.storage)) == 0


def test_the_place_of_damage_in_a_large_file(root, disk):
    folder = root.save(1, model={"w": zeros(2 * CHUNK_BYTES + 5), "b": f32(1)})
    flip(disk / folder.name / "model" / "model.safetensors", CHUNK_BYTES + 1)
    (verdict,) = check(root.storage)
    assert verdict.problems == [
        f"{folder.name}/model/model.safetensors: bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES} do not "
        f"match their checksum"
    ]


def test_a_file_that_gets_shorter_is_not_taken_for_the_one_before(root, disk):
    """What was read last is still in memory, and may be just what is missing now."""
    folders = [root.save(1, values={"same": "x" * 1000}) for _ in range(2)]
    listing = list_root(root.storage)
    path = disk / folders[0].name / "state" / "progress.json"
    size = path.stat().st_size
    os.truncate(path, size - 10)
    _, verdict = verify(root.storage, listing, threads=1)
    assert verdict.problems[0].startswith(
        f"{folders[0].name}/state/progress.json ends at byte {size - 10}; the manifest lists"
    )


def test_quick_looks_at_sizes_alone(root, disk):
    first, second = root.save(1), root.save(2)
    flip(disk / second.name / "state" / "progress.json")
    storage = Counting(root.storage)
    assert exit_code(check(storage, quick=True)) == 0
    assert storage.calls == {"tree": 1, "read": 2}
    (disk / first.name / "state" / "progress.json").write_bytes(b"{}")
    verdicts = check(root.storage, quick=True)
    assert exit_code(verdicts) == 65
    assert verdicts[1].problems == [
        f"{first.name}/state/progress.json has 2 bytes; the manifest lists 15 bytes"
    ]


def test_files_that_nobody_lists_are_named_and_no_damage(root, disk):
    folder = root.save(1)
    (disk / folder.name / "model" / "notes.txt").write_bytes(b"")
    (verdict,) = check(root.storage)
    assert verdict.unlisted == ["model/notes.txt"]
    assert exit_code([verdict]) == 0


def test_uncommitted_ones_do_not_count(root):
    root.save(1, commit=False)
    (verdict,) = check(root.storage)
    assert verdict.state is State.UNCOMMITTED
    assert exit_code([verdict]) == 66
    root.save(2)
    assert exit_code(check(root.storage)) == 0


def test_quarantined_ones_are_reported_and_read_on_demand(root, disk):
    bad = root.save(1)
    flip(disk / bad.name / "state" / "progress.json")
    aside(root.storage, bad)
    (verdict,) = check(root.storage)
    assert (verdict.state, verdict.reason) == (State.QUARANTINED, "a bad disk")
    assert exit_code([verdict]) == 65  # nothing is left that a run could restore
    root.save(2)
    assert exit_code(check(root.storage)) == 0
    (verdict,) = check(root.storage, [bad])
    assert (verdict.state, verdict.quarantined) == (State.DAMAGED, True)
    flip(disk / bad.name / "state" / "progress.json")
    (verdict,) = check(root.storage, [bad])
    assert (verdict.state, verdict.quarantined) == (State.COMMITTED, True)


def test_a_newer_format_is_neither_whole_nor_damaged(root, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", "tkc/9")
    root.save(1)
    monkeypatch.undo()
    root.save(2)
    verdicts = check(root.storage)
    assert [v.state for v in verdicts] == [State.COMMITTED, State.UNREADABLE]
    assert exit_code(verdicts) == 78


class Failing(Counting):
    """Reads of one file raise."""

    def __init__(self, storage, path, error):
        super().__init__(storage)
        self._path, self._error = path, error

    def read_into(self, path, *rest):
        if self._path in path:
            raise self._error
        return self._storage.read_into(path, *rest)


def test_a_disk_that_fails_is_not_damage_of_what_it_held(root):
    root.save(1)
    root.save(2)
    error = OSError(errno.EIO, "Input/output error", "progress.json")
    verdicts = check(Failing(root.storage, "0002.g01-0001/state", error))
    assert [v.state for v in verdicts] == [State.UNREADABLE, State.COMMITTED]
    assert "Input/output error" in verdicts[0].reason
    assert exit_code(verdicts) == 138


def test_a_refusal_ends_it(root):
    root.save(1)
    storage = Failing(root.storage, "progress", NoPermissionError(errno.EACCES, "denied"))
    with pytest.raises(NoPermissionError):
        check(storage)


def test_what_retention_removes_meanwhile_is_not_damaged(root):
    old, new = root.save(1), root.save(2)
    listing = list_root(root.storage)
    remove_step(root.storage, old)
    verdicts = verify(root.storage, listing)
    assert [v.folder for v in verdicts] == [new]
    assert exit_code(verdicts) == 0


def test_where_all_are_removed_meanwhile_nobody_says_that_there_were_none(root):
    old = root.save(1)
    root.save(2, commit=False)
    listing = list_root(root.storage)
    remove_step(root.storage, old)
    with pytest.raises(RetryableError, match="removed while they were read"):
        verify(root.storage, listing)


def test_threads_read_at_the_same_time_and_no_more_than_asked(root):
    root.save(1, model={"w": zeros(4 * CHUNK_BYTES)})
    together, most, lock = threading.Barrier(3), [0, 0], threading.Lock()

    class Meeting(Counting):
        def read_into(self, path, buffer, offset=0):
            assert len(buffer) <= CHUNK_BYTES
            with lock:
                most[0] += 1
                most[1] = max(most)
            if "model" in path and offset < 3 * CHUNK_BYTES:
                together.wait(60)
            count = self._storage.read_into(path, buffer, offset)
            with lock:
                most[0] -= 1
            return count

    assert exit_code(check(Meeting(root.storage), threads=3)) == 0
    assert most[1] == 3


def test_progress_comes_to_all_bytes_of_the_files(root):
    root.save(1, model={"w": zeros(CHUNK_BYTES + 1)})
    listing, done = list_root(root.storage), []
    (verdict,) = verify(root.storage, listing, progress=done.append)
    manifest_size = listing.steps[0].files["MANIFEST.json"].size
    assert sum(done) == bytes_to_check(listing) - manifest_size
    assert verdict.num_bytes == bytes_to_check(listing)
