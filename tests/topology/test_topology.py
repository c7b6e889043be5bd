"""The record itself."""

import pytest

from trainkit.topology import Role, Topology


@pytest.mark.parametrize(
    ("topology", "line"),
    [
        (Topology(platform="local"), "local worker · rank 0 of 1"),
        (
            Topology(
                platform="pytorchjob",
                role_index=0,
                rank=4,
                world_size=8,
                local_world_size=4,
                node_rank=1,
                num_nodes=2,
                procs_to_launch=4,
                master_addr="m",
                master_port=1,
            ),
            "pytorchjob worker 0 · starts 4 ranks 4–7 of 8 · node 1 of 2 · master m:1",
        ),
        (
            Topology(
                platform="pytorchjob",
                rank=None,
                world_size=None,
                num_nodes=None,
                procs_to_launch=2,
                min_nodes=1,
                max_nodes=3,
            ),
            "pytorchjob worker · starts 2 ranks of an elastic world · 1 to 3 nodes",
        ),
        (
            Topology(platform="tfjob", role=Role.PS, role_index=1, rank=None, world_size=3),
            "tfjob ps 1",
        ),
        (
            Topology(platform="mpi", rank=1, world_size=4, node_rank=None, num_nodes=2),
            "mpi worker · rank 1 of 4 · node ? of 2",
        ),
    ],
)
def test_summary(topology, line):
    assert topology.summary() == line


def test_json_has_the_fields_of_the_golden_cases_only():
    assert list(Topology(platform="local").to_json()) == [
        "platform",
        "role",
        "role_index",
        "rank",
        "world_size",
        "local_rank",
        "local_world_size",
        "node_rank",
        "num_nodes",
        "master_addr",
        "master_port",
        "procs_to_launch",
        "min_nodes",
        "max_nodes",
        "restart_count",
        "cluster",
        "hosts",
    ]


def test_hosts_are_lists_in_json():
    topology = Topology(platform="mpi", role=Role.LAUNCHER, hosts=[("a", 2)])
    assert topology.to_json()["hosts"] == [["a", 2]]
    assert topology.to_json()["role"] == "launcher"


def test_a_worker_pod_awaits_mpirun():
    assert Topology(platform="mpi", rank=None).awaits_mpirun
    assert not Topology(platform="mpi", rank=0).awaits_mpirun
