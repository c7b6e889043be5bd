import pytest

from trainkit.errors import TopologyError
from trainkit.launch.plan import plan_ranks
from trainkit.topology.topology import Topology

COMMAND = ["python", "train.py"]


def topology(**fields):
    return Topology(platform="trainjob", procs_to_launch=2, local_world_size=2, **fields)


def test_several_pods_meet_at_the_master_under_their_own_index():
    plan = plan_ranks(
        topology(num_nodes=3, node_rank=1, master_addr="m-0.m", master_port=29500), COMMAND, {}, "x"
    )
    assert (plan.backend, plan.endpoint, plan.node_rank) == ("static", "m-0.m:29500", 1)
    assert (plan.min_nodes, plan.max_nodes, plan.nproc) == (3, 3, 2)
    assert plan.command == ("python", "train.py")


def test_a_given_index_beats_a_rendezvous_that_numbers_as_they_come():
    plan = plan_ranks(
        topology(num_nodes=2, node_rank=0, master_addr="m", master_port=1),
        COMMAND,
        {"PET_RDZV_BACKEND": "c10d"},
        "x",
    )
    assert (plan.backend, plan.node_rank) == ("static", 0)


def test_one_pod_meets_on_a_free_port_of_its_own():
    plan = plan_ranks(topology(num_nodes=1, master_addr="m", master_port=1), COMMAND, {}, "run-1")
    assert (plan.backend, plan.endpoint, plan.run_id) == ("static", "127.0.0.1:0", "run-1")


def test_an_elastic_job_keeps_its_rendezvous():
    plan = plan_ranks(
        topology(
            num_nodes=None,
            node_rank=None,
            rank=None,
            world_size=None,
            min_nodes=1,
            max_nodes=3,
            master_addr="job-worker-0",
            master_port=23456,
        ),
        COMMAND,
        {"PET_RDZV_ID": "job", "PET_MAX_RESTARTS": "3", "PET_RDZV_CONF": "timeout=60, a=b"},
        "x",
    )
    assert (plan.min_nodes, plan.max_nodes, plan.node_rank) == (1, 3, None)
    assert (plan.backend, plan.run_id, plan.max_restarts) == ("c10d", "job", 3)
    assert plan.options == {"timeout": "60", "a": "b"}


@pytest.mark.parametrize(
    ("environ", "name"),
    [({"PET_MAX_RESTARTS": "many"}, "PET_MAX_RESTARTS='many'"), ({"PET_RDZV_CONF": "x"}, "'x'")],
)
def test_values_that_cannot_be_used_are_named(environ, name):
    elastic = topology(num_nodes=None, min_nodes=1, max_nodes=2, master_addr="m")
    with pytest.raises(TopologyError, match=name):
        plan_ranks(elastic, COMMAND, environ, "x")


def test_pods_without_a_meeting_point_are_an_error():
    with pytest.raises(TopologyError, match="PET_MASTER_ADDR"):
        plan_ranks(topology(num_nodes=2, node_rank=0), COMMAND, {}, "x")
