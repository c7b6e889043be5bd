"""CPUs, memory and the temporary folder."""

import pytest

from tests.doctor.conftest import root
from trainkit.doctor import Status, cpus, memory
from trainkit.doctor.disk import folder_finding

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "cores", "ranks", "threads", "workers", "words"),
    [
        (4, 4, 2, "", None, ""),
        (4, 64, 2, "2", None, ""),
        (4, 64, 2, "", None, "OMP_NUM_THREADS=2"),
        (4, 64, 2, "32", None, "Set it to 2"),
        (1, 64, 2, "1", None, "at least 2 CPUs"),
        (4, 4, 2, "", 1, ""),
        (4, 4, 2, "", 4, "use 1 workers"),
        (0.5, 2, 1, "1", None, "at least 1 CPUs"),
    ],
)
def test_cpus(limit, cores, ranks, threads, workers, words):
    found = cpus.judge(limit, "x", cores, ranks, threads, workers)
    assert found.status is (Status.WARNING if words else Status.OK)
    assert words in found.advice
    assert (found.values["limit"], found.values["host"]) == (limit, cores)


def test_cpus_of_this_process(doctor):
    found = doctor("--only", "cpu", OMP_NUM_THREADS=512).of("cpu")
    assert found["status"] == "warning"
    assert "OMP_NUM_THREADS=512" in found["advice"]
    found = doctor("--only", "cpu", before=("taskset", "-c", "0"), OMP_NUM_THREADS=1).of("cpu")
    assert found["values"]["limit"] == 1


@pytest.mark.parametrize(
    ("left", "arena", "status"),
    [
        (None, None, Status.NOT_CHECKED),
        (4 * GIB, None, Status.OK),
        (GIB, None, Status.WARNING),  # two ranks
        (4 * GIB, 2 * GIB, Status.OK),
        (4 * GIB, 3 * GIB, Status.WARNING),
        (4 * GIB, 5 * GIB, Status.BROKEN),
    ],
)
def test_memory(left, arena, status):
    assert memory.judge((8 * GIB, "x"), left, 2, arena).status is status


def test_a_checkpoint_that_does_not_fit_into_memory(doctor):
    told = doctor("--only", "memory", "--state-size", "900T")
    assert told.code == 78
    assert "exit code 137" in told.of("memory")["advice"]


def test_the_arena_is_divided_over_the_hosts(doctor):
    variables = {"WORLD_SIZE": 4, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    told = doctor("--only", "memory", "--state-size", "4G", **variables)
    assert told.of("memory")["values"]["arena"] == GIB


def test_the_temporary_folder(doctor, tmp_path):
    found = doctor("--only", "disk", TMPDIR=tmp_path).of("disk")
    assert found["values"]["folder"] == str(tmp_path)
    told = doctor("--only", "disk", TMPDIR=tmp_path / "gone")
    assert told.code == 78
    assert str(tmp_path) in told.of("disk")["advice"]


@root
def test_a_full_and_a_read_only_temporary_folder(doctor, mounted, tmp_path):
    fill = f'{{ cat /dev/zero > "{tmp_path}/filler" 2>/dev/null; true; }}'
    told = doctor("--only", "disk", TMPDIR=tmp_path, before=mounted(tmp_path, "size=1m", fill))
    assert told.code == 78
    assert "full" in told.of("disk")["advice"]
    told = doctor("--only", "disk", TMPDIR=tmp_path, before=mounted(tmp_path, "ro"))
    assert "read-only" in told.of("disk")["advice"]
    told = doctor("--only", "disk", TMPDIR=tmp_path, before=mounted(tmp_path, "size=64m"))
    assert told.of("disk")["status"] == "warning"
    few = mounted(tmp_path, "size=2g,nr_inodes=100")
    assert "files" in doctor("--only", "disk", TMPDIR=tmp_path, before=few).of("disk")["found"]


def test_nothing_is_left_in_the_folder(tmp_path):
    assert folder_finding(str(tmp_path)).check == "disk"
    assert list(tmp_path.iterdir()) == []
