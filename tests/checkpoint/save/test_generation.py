"""Generations: one a process, never twice, the same folder on all ranks."""

import os
import threading

import pytest

from trainkit.checkpoint.save.generation import await_claim, claim, refuse_overtaken
from trainkit.checkpoint.save.holder import Holder
from trainkit.errors import EnvironmentFaultError
from trainkit.storage import LocalStorage


def test_each_claim_is_another_one(tmp_path):
    numbers, start = [], threading.Barrier(6)

    def take():
        start.wait()
        numbers.extend(claim(LocalStorage(tmp_path)).generation for _ in range(5))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A slow one may find its number forgotten already, and takes another.
    assert len(set(numbers)) == 30
    assert min(numbers) >= 1


def test_old_claims_are_forgotten_but_never_the_newest(tmp_path):
    storage = LocalStorage(tmp_path)
    for _ in range(40):
        newest = claim(storage)
    names = storage.names(".generations")
    assert len(names) <= 17
    assert names[-1] == f"{newest.generation:010d}" == "0000000040"


def test_folders_count_where_claims_were_not_copied(tmp_path):
    (tmp_path / "step-0000000100.g07-0000").mkdir()
    assert claim(LocalStorage(tmp_path)).generation == 8


def test_a_path_that_is_not_shared_is_found_out(tmp_path):
    here, there = LocalStorage(tmp_path / "a"), LocalStorage(tmp_path / "b")
    mine, theirs = claim(here), claim(there)
    await_claim(here, mine, rank=1, timeout=0.1)
    assert mine.path == theirs.path  # the same number, and yet another folder
    for storage in (there, LocalStorage(tmp_path / "c")):
        with pytest.raises(EnvironmentFaultError, match="not shared: rank 1 does not see what"):
            await_claim(storage, mine, rank=1, timeout=0.1)


def test_a_number_that_was_used_and_forgotten_is_not_used_again(tmp_path):
    storage = LocalStorage(tmp_path)
    for _ in range(40):
        claim(storage)
    with pytest.raises(FileExistsError, match="claimed before"):
        claim(storage, after=3)  # as by a process that stood still between look and claim
    assert min(storage.names(".generations")) > "0000000004"


def test_another_run_that_has_taken_over_is_named(tmp_path):
    storage = LocalStorage(tmp_path)
    old, _ = claim(storage), claim(storage)
    with pytest.raises(EnvironmentFaultError, match=f"process {os.getpid()} on host .* taken over"):
        refuse_overtaken(storage, old.generation)


def test_in_one_process_who_opened_later_and_saves_wins(tmp_path):
    storage, this = LocalStorage(tmp_path), Holder.here()
    old, new = claim(storage, this), claim(storage, this)
    refuse_overtaken(storage, old.generation)  # the newer one has only looked so far
    storage.make_folder(f"step-0000000005.g{new.generation:02d}-0000")
    refuse_overtaken(storage, new.generation)
    with pytest.raises(EnvironmentFaultError, match="another run saves to"):
        refuse_overtaken(storage, old.generation)
