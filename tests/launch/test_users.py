"""Where this user's keys may be."""

import subprocess
import sys
from pathlib import Path

from trainkit.launch.users import ssh_folders, user_home
from trainkit.testing import requires_root

SHOW = "from trainkit.launch.users import ssh_folders; print(*ssh_folders(), sep=chr(10))"


def test_the_home_of_the_user_database_is_first(monkeypatch):
    monkeypatch.setenv("HOME", "/none")
    assert ssh_folders()[0] == user_home("nothing works") / ".ssh"


@requires_root()
def test_a_secret_that_is_mounted_elsewhere_is_found(tmp_path):
    found = []
    for name in (".ssh", "data", "a b/.ssh"):
        place = tmp_path / name
        place.mkdir(parents=True)
        script = f'mount -t tmpfs tmpfs "{place}" && exec "$@"'
        line = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", SHOW]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        found.append(place in map(Path, done.stdout.splitlines()))
    assert found == [True, False, False]
