"""/dev/shm, small and full for real."""

import pytest

from tests.doctor.conftest import root
from trainkit.doctor import Status
from trainkit.doctor.shared_memory import judge
from trainkit.resources.space import Space

ONLY = ("--only", "shared-memory")
MIB = 1 << 20


@root
def test_the_default_of_a_container(doctor, mounted):
    before = mounted("/dev/shm", "size=16m")
    told = doctor(*ONLY, before=before)
    assert told.code == 0
    found = told.of("shared-memory")
    assert (found["status"], found["values"]["total"]) == ("warning", 16 * MIB)
    assert "emptyDir: {medium: Memory}" in found["advice"]
    told = doctor(*ONLY, "--loader-workers", 4, "--batch-size", "38MiB", before=before)
    assert told.code == 78
    assert "SIGBUS" in told.of("shared-memory")["advice"]
    told = doctor(*ONLY, "--loader-workers", 0, before=before)
    assert told.of("shared-memory")["status"] == "ok"


@root
def test_full(doctor, mounted):
    before = mounted("/dev/shm", "size=1m", "{ cat /dev/zero > /dev/shm/x 2>/dev/null; true; }")
    told = doctor(*ONLY, before=before)
    assert told.code == 78
    assert told.of("shared-memory")["status"] == "broken"


@root
def test_read_only(doctor, mounted):
    told = doctor(*ONLY, before=mounted("/dev/shm", "ro"))
    assert told.code == 78
    assert "cannot be used: Read-only file system" in told.of("shared-memory")["found"]


@pytest.mark.parametrize(
    ("free", "workers", "batch", "status"),
    [
        (64 * MIB, None, None, Status.WARNING),
        (65 * MIB, None, None, Status.OK),
        (64 * MIB, 0, None, Status.OK),
        (64 * MIB, 2, None, Status.WARNING),
        (64 * MIB, 2, 5 * MIB, Status.OK),  # 2 ranks × 2 workers × 3 batches are 60 MiB
        (59 * MIB, 2, 5 * MIB, Status.BROKEN),
        (MIB - 1, 0, 1, Status.BROKEN),
    ],
)
def test_judgement(free, workers, batch, status):
    assert judge(Space(8 << 30, free, None), 2, workers, batch).status is status
