"""Error files of any writer, and of none."""

import json
import os

from trainkit.lifecycle.error_file import read_error_file
from trainkit.lifecycle.failure import FailureRecord


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


def test_ours_comes_back_as_it_was(tmp_path):
    record = FailureRecord.of(raised(RuntimeError("Connection closed by peer")), 3)
    record.write(str(tmp_path / "e.json"))
    assert read_error_file(tmp_path / "e.json") == record
    assert record.peer_lost


def test_ours_through_an_outer_torchrun(tmp_path):
    """It copies the file to its own and sets a code in it."""
    record = FailureRecord.of(raised(ValueError("x")), 3)
    record.write(str(tmp_path / "e.json"))
    data = json.loads((tmp_path / "e.json").read_text())
    data["message"]["errorCode"] = 1
    (tmp_path / "e.json").write_text(json.dumps(data))
    assert read_error_file(tmp_path / "e.json") == record


def test_a_record_with_fields_of_other_types_is_not_ours(tmp_path):
    record = FailureRecord.of(raised(ValueError("x")), 3)
    record.write(str(tmp_path / "e.json"))
    data = json.loads((tmp_path / "e.json").read_text())
    for name, value in [("time", "soon"), ("message", 3), ("exit_code", None), ("new", 1)]:
        changed = json.loads(json.dumps(data))
        changed["message"]["extraInfo"]["trainkit"][name] = value
        (tmp_path / "e.json").write_text(json.dumps(changed))
        found = read_error_file(tmp_path / "e.json")
        assert found is not None
        assert (found.error, found.message, found.rank) == ("ValueError", "x", None)


def test_the_form_of_earlier_releases_of_torch(tmp_path):
    (tmp_path / "e.json").write_text('{"message": "KeyError: 7", "timestamp": 1700000000}')
    found = read_error_file(tmp_path / "e.json")
    assert (found.error, found.message, found.time) == ("KeyError", "7", 1700000000)


def test_stamps_of_whole_seconds_are_made_finer(tmp_path):
    path = tmp_path / "e.json"
    path.write_text('{"message": {"message": "A: b", "extraInfo": {"timestamp": "1700000000"}}}')
    os.utime(path, (1700000000.75, 1700000000.75))
    assert read_error_file(path).time == 1700000000.75
    os.utime(path, (1700000100.0, 1700000100.0))
    assert read_error_file(path).time == 1700000000


def test_a_peer_that_is_lost_in_the_words_of_another_writer(tmp_path):
    path = tmp_path / "e.json"
    path.write_text('{"message": {"message": "torch.distributed.DistBackendError: NCCL error"}}')
    assert read_error_file(path).peer_lost


def test_nothing(tmp_path):
    assert read_error_file(None) is None
    assert read_error_file(tmp_path / "none") is None
    (tmp_path / "empty").touch()
    assert read_error_file(tmp_path / "empty") is None
