"""B014: two hosts (network namespaces) whose own names resolve to loopback addresses."""

import contextlib
import os
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.distributed.pods import PYTHON, assert_trained_together

pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2's ip",
)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Two namespaces joined by a cable; in each, /etc/hosts maps the own name to 127.0.1.1."""
    tag = uuid.uuid4().hex[:6]
    names = [f"tk{tag}a", f"tk{tag}b"]
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as refused:
                pytest.skip(f"no network namespaces here: {refused.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            stack.callback(shutil.rmtree, folder)
            (folder / "hosts").write_text(
                f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n"
            )
        ip("link", "add", f"v{tag}a", "type", "veth", "peer", "name", f"v{tag}b")
        for number, (name, end) in enumerate(zip(names, "ab", strict=True), start=1):
            ip("link", "set", f"v{tag}{end}", "netns", name)
            ip("-n", name, "address", "add", f"10.213.7.{number}/24", "dev", f"v{tag}{end}")
            ip("-n", name, "link", "set", f"v{tag}{end}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def test_gloo_listens_where_the_other_host_can_reach_it(cluster, hosts):
    for rank, host in enumerate(hosts):
        cluster.start(
            ["ip", "netns", "exec", host, PYTHON, "train.py"],
            RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="10.213.7.1",
            MASTER_PORT="29500",
        )
    cluster.end()
    assert_trained_together(cluster.records(), 2)
    assert "the host's own name resolves to loopback" in cluster.output()


def test_an_interface_that_the_user_names_is_kept(cluster, hosts):
    """The name is wrong on purpose, so that the failure shows whose word counted."""
    for rank, host in enumerate(hosts):
        cluster.start(
            ["ip", "netns", "exec", host, PYTHON, "train.py"],
            RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="10.213.7.1",
            MASTER_PORT="29500",
            GLOO_SOCKET_IFNAME="nope0",
            TRAINKIT_TIMEOUT="20",
        )
    for pod in cluster.pods:
        pod.process.wait(120)
    cluster.stop()
    assert all(pod.process.returncode != 0 for pod in cluster.pods)
    assert "nope0" in cluster.output()
