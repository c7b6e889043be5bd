"""Memory that is left, in the forms that the kernel writes limits."""

import pytest

from trainkit.resources.memory import (
    memory_left,
    memory_limit,
    memory_use,
    oom_kills,
    shared_memory,
    smallest_limit,
    smallest_room,
)

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


def test_use_and_limit_are_those_of_the_group_nearest_to_its_limit(tmp_path, room):
    room(
        {
            "proc/self/cgroup": "0::/pod/main\n",
            "sys/fs/cgroup/pod/main/memory.max": "max\n",
            "sys/fs/cgroup/pod/main/memory.current": "700\n",
            "sys/fs/cgroup/pod/memory.max": "1000\n",
            "sys/fs/cgroup/pod/memory.current": "800\n",
            "sys/fs/cgroup/memory.max": "100000\n",
            "sys/fs/cgroup/memory.current": "900\n",
        }
    )
    assert memory_use(str(tmp_path)) == (800, 1000)


def test_no_limit_is_none(tmp_path, room):
    room(
        {
            "proc/self/cgroup": "3:memory:/a\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "100\n",
        }
    )
    assert memory_use(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, None),
        (
            {
                "proc/self/cgroup": "0::/pod\n",
                "sys/fs/cgroup/pod/memory.events": "low 0\noom 7\noom_kill 3\noom_group_kill 0\n",
                "sys/fs/cgroup/memory.events": "oom_kill 90\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:memory:/pod\n0::/\n",
                "sys/fs/cgroup/memory/pod/memory.oom_control": "under_oom 0\noom_kill 2\n",
                "sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\noom_kill 90\n",
            },
            2,
        ),
        (  # in a container the path is the host's, and only the top is there
            {
                "proc/self/cgroup": "4:memory:/kubepods/burstable/pod7\n",
                "sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\noom_kill 4\n",
            },
            4,
        ),
        (  # a kernel that does not count
            {
                "proc/self/cgroup": "4:memory:/pod\n",
                "sys/fs/cgroup/memory/pod/memory.oom_control": "under_oom 0\n",
            },
            None,
        ),
    ],
)
def test_kills_for_memory(tmp_path, room, files, count):
    room(files)
    assert oom_kills(str(tmp_path)) == count


def test_shared_memory(tmp_path):
    size, free = shared_memory(str(tmp_path))
    assert 0 <= free <= size
    assert size > 0
    assert shared_memory(str(tmp_path / "none")) is None


def test_the_limit_and_what_sets_it(room, tmp_path):
    room({})
    assert smallest_limit(str(tmp_path)) is None
    room(MACHINE)
    assert smallest_limit(str(tmp_path)) == (9000 * 1024, "the machine")
    room({"proc/self/cgroup": "0::/pod\n", "sys/fs/cgroup/pod/memory.max": "1000000\n"})
    assert smallest_limit(str(tmp_path)) == (1_000_000, "/sys/fs/cgroup/pod/memory.max")
    found = memory_limit()
    assert found is not None
    assert found[0] > 1 << 20
