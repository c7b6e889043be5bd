"""The commit: waits for the parts of all ranks, knows who is missing, refuses what is not right."""

import json
import threading
from dataclasses import replace

import pytest

from trainkit.checkpoint.format.catalog import committed, read_manifest
from trainkit.checkpoint.format.layout import StepFolder, part_path
from trainkit.checkpoint.format.manifest import Entry, Part
from trainkit.checkpoint.save.commit import commit, create_once
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.work import carry_out, put_views, take_up
from trainkit.errors import (
    CheckpointDamagedError,
    DeadlineError,
    EnvironmentFaultError,
    UsageError,
)
from trainkit.storage import LocalStorage
from trainkit.waiting import Deadline

FOLDER = StepFolder(5, 1, 0)


def job(rank=0, world_size=1, **others):
    values = {
        "folder": FOLDER,
        "rank": rank,
        "world_size": world_size,
        "division": "",
        "entries": {"a": Entry("value", ("state/a",))} if rank == 0 else {},
        "metrics": {"loss": 1.5},
        "written_by": "a test",
        "timeout": 30.0,
        "attempts": 1,
        "pause": 0.0,
    }
    return Job(**{**values, **others})


def put(storage, work):
    views = {f"state/{work.rank}.json": memoryview(b"%d" % work.rank)}
    return lambda place: put_views(place, work, views)


def do(storage, work, check=lambda: None):
    carry_out(storage, work, put(storage, work), check)


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_whoever_comes_last(storage, world_size):
    """Ranks write in any order, and the manifest lists all that they wrote."""
    ranks = [
        threading.Thread(target=do, args=(storage, job(rank, world_size)))
        for rank in range(world_size)
    ]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    assert committed(storage) == [FOLDER]
    manifest = read_manifest(storage, FOLDER)
    expected = {f"state/{rank}.json" for rank in range(world_size)}
    assert set(manifest.files) == expected | {part_path(rank) for rank in range(world_size)}
    assert manifest.world_size == world_size
    assert manifest.metrics == {"loss": 1.5}
    assert manifest.entries == job().entries


def test_missing_ranks_are_named(storage):
    do(storage, job(2, 4))
    with pytest.raises(DeadlineError, match=r"the parts of step 5 in .*\(rank\(s\) 1, 3 of 4\)"):
        do(storage, job(0, 4, timeout=0.3))
    assert committed(storage) == []


def test_the_wait_can_be_ended(storage):
    def check():
        raise ConnectionError("given up")

    with pytest.raises(ConnectionError, match="given up"):
        do(storage, job(0, 2), check)


def test_a_part_that_is_seen_before_it_is_whole(storage, tmp_path):
    """Without hard links a part appears, and its bytes after it."""
    do(storage, job(1, 2))
    path = tmp_path / FOLDER.name / part_path(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    looks = []

    def check():
        looks.append(True)
        if len(looks) == 3:
            path.write_bytes(whole)

    do(storage, job(0, 2), check)
    assert len(looks) == 3
    assert committed(storage) == [FOLDER]


def test_a_damaged_part_is_not_committed(storage, tmp_path):
    do(storage, job(1, 2))
    path = tmp_path / FOLDER.name / part_path(1)
    path.write_bytes(path.read_bytes().replace(b"state/1", b"state/7"))
    with pytest.raises(CheckpointDamagedError, match="does not match its own hash"):
        do(storage, job(0, 2))


def test_ranks_that_divided_otherwise_are_named(storage):
    do(storage, job(1, 3, division="same"))
    do(storage, job(2, 3, division="other"))
    with pytest.raises(UsageError, match=r"rank\(s\) 2 are not those of rank 0"):
        do(storage, job(0, 3, division="same"))


def test_ranks_at_other_steps_are_named(storage):
    do(storage, job(1, 3, folder=replace(FOLDER, step=6)))
    with pytest.raises(UsageError, match=r"rank 0 saves 5, and rank\(s\) 1 6"):
        do(storage, job(0, 3))


def test_a_run_that_was_overtaken_does_not_commit(storage):
    do(storage, job(folder=StepFolder(2, 2, 0)))
    with pytest.raises(EnvironmentFaultError, match="another run saves to"):
        do(storage, job())


def test_a_commit_that_is_done_again_is_the_same(storage):
    do(storage, job())
    manifest = storage.read(f"{FOLDER.name}/MANIFEST.json")
    do(storage, job())
    assert storage.read(f"{FOLDER.name}/MANIFEST.json") == manifest
    with pytest.raises(FileExistsError):
        commit(storage, job(metrics={}), Deadline(5), lambda: None)


def test_create_once(storage):
    create_once(storage, "a", b"1")
    create_once(storage, "a", b"1")
    with pytest.raises(FileExistsError):
        create_once(storage, "a", b"2")


@pytest.mark.parametrize("left", ["files", "torn part", "part", "torn manifest", "manifest"])
def test_work_that_is_taken_up(storage, tmp_path, left):
    """What another process has done stays where it counts, and goes where it does not."""
    folder = tmp_path / FOLDER.name
    if left.endswith("manifest"):
        do(storage, job())
        manifest = folder / "MANIFEST.json"
        if left == "torn manifest":  # as a kill leaves it where there are no hard links
            manifest.write_bytes(manifest.read_bytes()[:100])
    elif left == "part":
        with pytest.raises(ConnectionError):
            do(storage, job(0, 1), _raise)
    else:
        (folder / "state").mkdir(parents=True)
        (folder / "state/0.json").write_bytes(b"torn")
        if left == "torn part":
            (folder / "ranks").mkdir()
            part = Part(0, {}).to_bytes()
            (folder / part_path(0)).write_bytes(part[: len(part) // 2])
    take_up(storage, job(), ["state/0.json"])
    do(storage, job())
    assert committed(storage) == [FOLDER]
    assert (folder / "state/0.json").read_bytes() == b"0"
    read_manifest(storage, FOLDER)


def _raise():
    raise ConnectionError("killed before the commit")


def test_a_job_goes_through_json():
    work = job(metrics={"loss": float("nan"), "best": float("inf")})
    again = Job.from_json(json.loads(json.dumps(work.to_json())))
    assert repr(again) == repr(work)
