import json

from trainkit.recipes._trace import StepTrace


def test_a_line_a_step(tmp_path):
    with StepTrace(str(tmp_path / "new"), 3) as trace:
        trace.step(1, 0, [5, 7], 0.25)
        trace.step(2, 0, [1, 2], 0.125)
    lines = (tmp_path / "new" / "rank-3.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "epoch": 0, "samples": [5, 7], "loss": 0.25},
        {"step": 2, "epoch": 0, "samples": [1, 2], "loss": 0.125},
    ]


def test_a_restart_goes_on_in_a_line_of_its_own(tmp_path):
    path = tmp_path / "rank-0.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with StepTrace(str(tmp_path), 0) as trace:
        trace.step(2, 0, [], 1.0)
    lines = path.read_text().split("\n")
    assert lines[1] == '{"st'
    assert json.loads(lines[2])["step"] == 2
    with StepTrace(str(tmp_path), 0) as trace:
        trace.step(3, 0, [], 1.0)
    assert json.loads(path.read_text().split("\n")[3])["step"] == 3


def test_without_a_folder_nothing_is_written():
    trace = StepTrace(None, 0)
    trace.step(1, 0, [], 1.0)
    assert not trace.enabled
