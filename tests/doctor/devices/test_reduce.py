"""All-reduce by real processes, on this host and across pods."""

import json
import os
import subprocess
import sys

import pytest

from tests.doctor.conftest import DEADLINE, MARKS, Told
from trainkit.doctor import Status
from trainkit.doctor.devices.reduce import judge, ranks_across
from trainkit.testing import free_port, requires_module
from trainkit.topology import Role, Topology

pytestmark = [requires_module("torch"), pytest.mark.world_size(2)]
ACROSS = ("--across", "--only", "all-reduce-across")


@pytest.fixture
def pods():
    """Run the command once for each of several environments, at the same time."""

    def _pods(environs, *argv, command=("-m", "trainkit", "doctor")):
        base = {n: v for n, v in os.environ.items() if not n.startswith(MARKS)}
        started = [
            subprocess.Popen(
                [sys.executable, *command, "--json", *map(str, argv)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=base | {"TRAINKIT_DEVICE": "cpu"} | {n: str(v) for n, v in environ.items()},
            )
            for environ in environs
        ]
        told = []
        try:
            for process in started:
                out, err = process.communicate(timeout=DEADLINE)
                told.append(Told(process.returncode, out, err))
        finally:
            for process in started:
                process.kill()
                process.communicate()
        return told

    return _pods


def pod(rank, world, port, **more):
    return {
        "RANK": rank,
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **more,
    }


def test_two_ranks_of_this_host(doctor):
    told = doctor("--only", "all-reduce", TRAINKIT_DEVICE="cpu")
    assert told.code == 0, told
    values = told.of("all-reduce")["values"]
    assert (values["backend"], values["world_size"]) == ("gloo", 2)
    assert values["bandwidth"] > 0
    assert values["limit"] > 0
    assert values["limits"] == "one copy in memory"


def test_as_many_ranks_as_train_here(doctor):
    variables = {"PET_NNODES": 1, "PET_NPROC_PER_NODE": 3, "TRAINKIT_DEVICE": "cpu"}
    told = doctor("--only", "all-reduce", **pod(0, 1, 29500), **variables)
    assert told.of("all-reduce")["values"]["world_size"] == 3


def test_a_launchers_marks_do_not_reach_ranks_of_this_host(doctor):
    told = doctor("--only", "all-reduce", **pod(1, 2, 1), TRAINKIT_DEVICE="cpu", PMIX_NAMESPACE="x")
    assert told.of("all-reduce")["status"] == "ok", told


def test_without_torch(doctor, without_torch):
    told = doctor("--only", "all-reduce", *ACROSS, TRAINKIT_DEVICE="cpu", **without_torch)
    for name in ("all-reduce", "all-reduce-across"):
        found = told.of(name)
        assert (found["status"], found["found"]) == ("not_checked", "torch is not installed")
    assert told.code == 0


def test_across_two_pods(pods):
    port = free_port()
    told = pods([pod(rank, 2, port) for rank in (0, 1)], *ACROSS)
    for one in told:
        assert one.code == 0, one
        values = one.of("all-reduce-across")["values"]
        assert (values["world_size"], values["backend"]) == (2, "gloo")
        assert one.of("clock-across")["status"] == "ok"


def test_across_pods_of_two_ranks_each(pods):
    port = free_port()
    more = {"PET_NNODES": 2, "PET_NPROC_PER_NODE": 2}
    # WORLD_SIZE counts ranks, and RANK pods.
    told = pods([pod(node, 4, port, PET_NODE_RANK=node, **more) for node in (0, 1)], *ACROSS)
    for one in told:
        assert one.code == 0, one
        assert one.of("all-reduce-across")["values"]["world_size"] == 4


def test_under_torchrun_the_first_rank_of_a_host_speaks(pods, tmp_path):
    command = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "trainkit", "doctor")
    (told,) = pods([{"TMPDIR": tmp_path}], *ACROSS, command=command)
    assert told.code == 0, told
    assert json.loads(told.out)["fit"] is True
    assert told.of("all-reduce-across")["values"]["world_size"] == 2


def test_a_pod_that_does_not_come(pods):
    (told,) = pods([pod(0, 2, free_port())], *ACROSS, "--timeout", 30)
    assert told.code == 78
    found = told.of("all-reduce-across")
    assert "missing: rank 1" in found["found"]
    assert "in all pods of the job at once" in found["advice"]


def test_a_job_of_one_rank(doctor):
    told = doctor(*ACROSS)
    assert told.of("all-reduce-across")["found"] == "this is a job of one rank"
    told = doctor("--only", "all-reduce-across")
    assert told.of("all-reduce-across")["found"] == "not asked for"


def test_which_ranks_a_process_stands_for():
    one = Topology(platform="x", rank=3, world_size=4, local_rank=1, local_world_size=2)
    assert ranks_across(one) == [one]
    node = Topology(
        platform="x",
        rank=2,
        world_size=4,
        local_rank=None,
        local_world_size=2,
        procs_to_launch=2,
    )
    ranks = ranks_across(node)
    assert [(r.rank, r.local_rank, r.procs_to_launch) for r in ranks] == [(2, 0, 0), (3, 1, 0)]
    ps = Topology(platform="x", role=Role.PS, rank=None, world_size=4, local_world_size=0)
    elastic = Topology(platform="x", rank=None, world_size=None, local_world_size=2)
    assert ranks_across(ps) == ranks_across(elastic) == ranks_across(Topology(platform="x")) == []


def test_the_rank_that_failed_is_named_and_not_those_that_waited_for_it():
    ranks = [Topology(platform="x", rank=n, world_size=3) for n in range(3)]
    answers = [{"error": "slow", "hung": True}, {"error": "no GPU"}, {"error": "x", "hung": True}]
    (found,) = judge("all-reduce", ranks, answers)
    assert found.status is Status.BROKEN
    assert found.found == "rank 1 of 3: no GPU"
    assert set(found.values["failed"]) == {"0", "1", "2"}


def test_a_slow_way_between_gpus_and_clocks_that_differ():
    answer = {
        "backend": "nccl",
        "world_size": 8,
        "bandwidth": 9e9,
        "limit": 450e9,
        "limits": "18 NVLinks",
        "clocks": 4.0,
        "hosts": ["a", "b"],
    }
    ranks = [Topology(platform="x", rank=0, world_size=8)]
    slow, clocks = judge("all-reduce-across", ranks, [answer])
    assert (slow.status, clocks.status) == (Status.WARNING, Status.WARNING)
    assert "at 9.0 GB/s (at most 450.0 GB/s, 18 NVLinks)" in slow.found
    (quick,) = judge("all-reduce", ranks, [answer | {"bandwidth": 300e9}])
    assert quick.status is Status.OK
