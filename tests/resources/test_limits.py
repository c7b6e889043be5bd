"""Limits of this process, and of a container's processes."""

import resource

from trainkit.resources.limits import process_limit, tasks_left


def test_a_limit_that_is_set():
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    try:
        assert process_limit("core")[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_unlimited_is_none(monkeypatch):
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda number: (5, infinite))
    assert process_limit("nofile") == (5, None)


def test_tasks_by_the_tightest_group(tmp_path):
    files = {
        "proc/self/cgroup": "0::/pod/c\n",
        "sys/fs/cgroup/pod/c/pids.max": "max\n",
        "sys/fs/cgroup/pod/c/pids.current": "7\n",
        "sys/fs/cgroup/pod/pids.max": "100\n",
        "sys/fs/cgroup/pod/pids.current": "30\n",
        "sys/fs/cgroup/pids.max": "50\n",
        "sys/fs/cgroup/pids.current": "40\n",
    }
    assert tasks_left(str(tmp_path)) is None
    for path, text in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert tasks_left(str(tmp_path)) == (10, "/sys/fs/cgroup/pids.max")
