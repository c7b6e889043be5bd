"""CPUs that a process may use, in the forms that the kernel writes limits."""

import os

import pytest

from trainkit.resources.cpus import cpu_limit, smallest_limit


@pytest.fixture
def limit(tmp_path):
    def _limit(files, affinity=8):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return smallest_limit(str(tmp_path), affinity)

    return _limit


def test_nothing_but_affinity(limit):
    assert limit({}) == (8.0, "CPU affinity")


def test_cgroup_v2_in_a_container(limit):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    assert limit(files) == (1.5, "cgroup quota in /sys/fs/cgroup/cpu.max")


def test_cgroup_v2_without_limit(limit):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert limit(files) == (8.0, "CPU affinity")


def test_a_limit_above_counts(limit):
    files = {
        "proc/self/cgroup": "0::/pods/pod1/main\n",
        "sys/fs/cgroup/pods/pod1/main/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pods/pod1/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/pods/cpu.max": "400000 100000\n",
    }
    assert limit(files) == (3.0, "cgroup quota in /sys/fs/cgroup/pods/pod1/cpu.max")


def test_cgroup_v1(limit):
    files = {
        "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n2:cpuset:/y\n",
        "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
    }
    source = "cgroup quota in /sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us"
    assert limit(files) == (2.0, source)


def test_cgroup_v1_with_the_path_of_the_host(limit):
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/kubepods/burstable/pod8d3f/1a2b\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert limit(files)[0] == 0.5


def test_cgroup_v1_without_limit(limit):
    files = {
        "proc/self/cgroup": "3:cpu:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert limit(files) == (8.0, "CPU affinity")


def test_affinity_smaller_than_the_quota(limit):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}
    assert limit(files, affinity=1) == (1.0, "CPU affinity")


@pytest.mark.parametrize("text", ["", "junk", "1 2 3", "0 100000"])
def test_what_cannot_be_read_sets_no_limit(limit, text):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text}
    assert limit(files) == (8.0, "CPU affinity")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_of_this_process_follows_its_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        cpus, source = cpu_limit()
    finally:
        os.sched_setaffinity(0, before)
    assert cpus <= 1
    assert source
