import json

import pytest

from trainkit.errors import DataError
from trainkit.lifecycle import FailureRecord, report


def fail(error):
    try:
        raise error
    except BaseException as raised:
        return raised


def test_an_error_of_ours_is_one_message_without_a_traceback(capsys):
    code = report(fail(DataError("the file is cut off")), rank=3, error_file=None)
    assert code == 65
    assert capsys.readouterr().err == "trainkit: rank 3: the file is cut off\n"


def test_an_error_of_the_user_is_shown_with_its_traceback(capsys):
    code = report(fail(ZeroDivisionError("by zero")), rank=0, error_file=None)
    shown = capsys.readouterr().err
    assert code == 70
    assert "Traceback" in shown
    assert "ZeroDivisionError: by zero" in shown


def test_the_record_is_what_torch_reads_and_comes_back(tmp_path, capsys):
    path = tmp_path / "attempt_0" / "error.json"
    report(fail(ValueError("bad batch")), rank=1, error_file=str(path))
    capsys.readouterr()
    data = json.loads(path.read_text())
    assert data["message"]["message"] == "ValueError: bad batch"
    record = FailureRecord.from_error_file(data)
    assert record is not None
    assert (record.rank, record.exit_code, record.error) == (1, 70, "ValueError")
    assert FailureRecord.from_error_file({"message": "another program's"}) is None


def test_torch_parses_the_record(tmp_path, capsys):
    errors = pytest.importorskip("torch.distributed.elastic.multiprocessing.errors")
    path = tmp_path / "error.json"
    report(fail(ValueError("bad batch")), rank=1, error_file=str(path))
    capsys.readouterr()
    failure = errors.ProcessFailure(local_rank=0, pid=1, exitcode=70, error_file=str(path))
    assert failure.message["message"] == "ValueError: bad batch"


def test_exit_with_a_text_prints_it(capsys):
    assert report(fail(SystemExit("give me data")), rank=0, error_file=None) == 1
    assert capsys.readouterr().err == "give me data\n"


def test_secrets_are_in_no_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-key")
    for error in (ValueError, DataError, SystemExit):
        report(fail(error("with planted-key")), rank=0, error_file=str(tmp_path / "e.json"))
        assert "planted" not in capsys.readouterr().err
    assert "planted" not in (tmp_path / "e.json").read_text()


def test_an_error_that_cannot_be_shown_is_reported_all_the_same(capsys):
    class Mute(Exception):
        def __str__(self):
            raise KeyError("no text")

    assert report(fail(Mute()), rank=0, error_file=None) == 70
    assert "Mute" in capsys.readouterr().err
