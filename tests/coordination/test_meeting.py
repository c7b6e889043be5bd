import json
import os

import pytest

from trainkit.coordination.meeting import _path, job_namespace, meet_on_host, publish_port
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_the_published_port_is_met():
    publish_port("job-1", 12345)
    assert meet_on_host("job-1", who="rank 1", deadline=Deadline(5)) == 12345


def test_another_job_is_not_met():
    publish_port("job-1", 12345)
    with pytest.raises(DeadlineError, match="rank 1 to hear from rank 0"):
        meet_on_host("job-2", who="rank 1", deadline=Deadline(0.1))


def test_a_file_of_a_dead_process_counts_for_nothing():
    path = publish_port("job-1", 12345)
    note = json.loads(path.read_text())
    note["started"] -= 1  # the same pid, another process
    path.write_text(json.dumps(note))
    with pytest.raises(DeadlineError):
        meet_on_host("job-1", who="rank 1", deadline=Deadline(0.1))


def test_jobs_of_one_launcher_have_one_namespace():
    assert job_namespace({"PMIX_NAMESPACE": "prterun-a-1@1"}) == job_namespace(
        {"PMIX_NAMESPACE": "prterun-a-1@1", "PMIX_RANK": "1"}
    )
    assert job_namespace({}) == f"parent={os.getppid()}"
    assert _path("a") != _path("b")
