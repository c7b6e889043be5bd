"""Limits that are set for real, in the process that runs the doctor."""

import resource

from trainkit.doctor import limits as subject
from trainkit.doctor.finding import Question

ONLY = ("--only", "limits")


def limited(**limits):
    def set_them():
        for name, value in limits.items():
            number = getattr(resource, f"RLIMIT_{name.upper()}")
            _, hard = resource.getrlimit(number)
            resource.setrlimit(number, (value, hard))

    return set_them


def test_few_open_files(doctor):
    found = doctor(*ONLY, limit=limited(nofile=1024)).of("nofile")
    assert (found["status"], found["values"]["soft"]) == ("warning", 1024)
    assert "ulimit -n" in found["advice"]
    told = doctor(*ONLY, limit=limited(nofile=100))
    assert told.code == 78
    assert told.of("nofile")["status"] == "broken"


def test_a_hard_limit_is_not_raised_by_ulimit(doctor):
    number = resource.RLIMIT_NOFILE
    found = doctor(*ONLY, limit=lambda: resource.setrlimit(number, (512, 512))).of("nofile")
    assert "LimitNOFILE" in found["advice"]


def test_core_dumps(doctor):
    found = doctor(*ONLY, limit=limited(core=0)).of("core")
    assert found["found"] == "no core dumps are written"
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard != 0:
        found = doctor(*ONLY, limit=limited(core=4096)).of("core")
        assert "4.0 KiB" in found["found"]


def test_locked_memory_matters_where_there_is_infiniband(doctor, tmp_path, monkeypatch):
    told = doctor(*ONLY, limit=limited(memlock=65536)).of("memlock")
    assert told["values"]["soft"] == 65536
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    monkeypatch.setattr(subject, "_INFINIBAND", str(tmp_path))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, before[1]))
    try:
        found = next(one for one in subject.check(Question()) if one.check == "memlock")
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    assert found.status == "warning"
    assert "IPC_LOCK" in found.advice


def test_processes(monkeypatch):
    def found(left, workers=None):
        monkeypatch.setattr(subject, "tasks_left", lambda: left)
        question = Question(loader_workers=workers)
        return next(one for one in subject.check(question) if one.check == "pids")

    assert found(None).status == "ok"
    assert found((20_000, "/x/pids.max")).status == "ok"
    few = found((50, "/x/pids.max"))
    assert (few.status, few.values["left"]) == ("warning", 50)
    assert found((150, "/x/pids.max"), workers=20).status == "warning"
