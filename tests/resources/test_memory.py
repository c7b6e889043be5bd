"""Memory that is left, in the forms that the kernel writes limits."""

import pytest

from trainkit.resources.memory import memory_left, smallest_room

MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}


@pytest.fixture
def room(tmp_path):
    def _room(files):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return smallest_room(str(tmp_path))

    return _room


def test_nothing_tells(room):
    assert room({}) is None


def test_what_the_machine_has(room):
    assert room(MACHINE) == 8000 * 1024


def test_cgroup_v2(room):
    files = {
        **MACHINE,
        "proc/self/cgroup": "0::/pod\n",
        "sys/fs/cgroup/pod/memory.max": "1000000\n",
        "sys/fs/cgroup/pod/memory.current": "700000\n",
        "sys/fs/cgroup/pod/memory.stat": "anon 5\ninactive_file 200000\n",
    }
    assert room(files) == 500_000
    assert room({"sys/fs/cgroup/pod/memory.max": "max\n"}) == 8000 * 1024


def test_cgroup_v1_where_a_group_above_limits(room):
    files = {
        **MACHINE,
        "proc/self/cgroup": "5:cpu,cpuacct:/a\n3:memory:/a/b\n",
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": "100\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "2000\n",
        "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
    }
    assert room(files) == 1050


def test_nothing_is_left(room):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100\n",
        "sys/fs/cgroup/memory.current": "120\n",
    }
    assert room(files) == 0


def test_here_something_is():
    left = memory_left()
    assert left is not None
    assert left > 1 << 20
