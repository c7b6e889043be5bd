"""Ranks without torch's agent: plans, and real ranks of XGBoost over its own tracker."""

import socket
from importlib.util import find_spec

import pytest

from trainkit.errors import TopologyError
from trainkit.launch.static import is_led_by_tracker, plan_static
from trainkit.testing import requires_module
from trainkit.topology import detect
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

COMMAND = ["python", "train.py"]

XGB = """
import os, xgboost
from xgboost import collective
from xgboost.tracker import RabitTracker
environ = os.environ
task, workers = environ["DMLC_TASK_ID"], int(environ["DMLC_NUM_WORKER"])
host, port = environ["DMLC_TRACKER_URI"], int(environ["DMLC_TRACKER_PORT"])
if task == "0":
    tracker = RabitTracker(host_ip=host, n_workers=workers, port=port, sortby="task", timeout=60)
    tracker.start()
with collective.CommunicatorContext(
    dmlc_tracker_uri=host, dmlc_tracker_port=port, dmlc_task_id=task, dmlc_timeout=60
):
    seen = environ.get("CUDA_VISIBLE_DEVICES"), environ["PET_NPROC_PER_NODE"]
    print("task", task, "rank", collective.get_rank(), collective.get_world_size(), *seen)
    import trainkit
    topology = trainkit.detect()
    assert (topology.rank, topology.world_size) == (int(task), workers), topology
if task == "0":
    tracker.wait_for()
"""


def trainjob(node, gpus=2, workers=4):
    environ = {
        "DMLC_TRACKER_URI": "job-node-0-0.job",
        "DMLC_TRACKER_PORT": "29500",
        "DMLC_TASK_ID": str(node),
        "DMLC_NUM_WORKER": str(workers),
    }
    return detect(Sight(environ=environ, visible_gpus=gpus))


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, ["0", "1"]), ("4,6", ["4", "6"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])],
)
def test_one_task_a_gpu_in_a_trainjob_of_xgboost(visible, devices):
    topology = trainjob(1)
    assert is_led_by_tracker(topology)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    plan = plan_static(topology, COMMAND, environ, gpus=2)
    assert plan.rank == 2
    assert [one["DMLC_TASK_ID"] for one in plan.environs] == ["2", "3"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in plan.environs] == devices
    # Each is to be taken for a pod of one rank, or it would start ranks itself.
    assert {one["PET_NPROC_PER_NODE"] for one in plan.environs} == {"1"}


def test_without_torch_ranks_see_what_those_of_torchrun_see():
    two = Topology(
        platform="trainjob",
        procs_to_launch=2,
        local_world_size=2,
        rank=2,
        world_size=4,
        node_rank=1,
        num_nodes=2,
        master_addr="m-0",
        master_port=1234,
    )
    assert not is_led_by_tracker(two)
    plan = plan_static(two, COMMAND, {}, gpus=2)
    assert [(one["RANK"], one["LOCAL_RANK"]) for one in plan.environs] == [("2", "0"), ("3", "1")]
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in plan.environs} == {("m-0", "1234")}
    seen = [detect(Sight(environ=dict(one))) for one in plan.environs]
    assert [(one.rank, one.world_size, one.node_rank) for one in seen] == [(2, 4, 1), (3, 4, 1)]


def test_an_elastic_job_needs_an_agent():
    elastic = Topology(
        platform="pytorchjob",
        procs_to_launch=2,
        rank=None,
        world_size=None,
        min_nodes=1,
        max_nodes=2,
    )
    with pytest.raises(TopologyError, match="an elastic job needs torch's agent"):
        plan_static(elastic, COMMAND, {}, gpus=0)


@requires_module("xgboost")
def test_two_pods_of_xgboost_with_two_tasks_each(launch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        "DMLC_TRACKER_URI": "127.0.0.1",
        "DMLC_TRACKER_PORT": str(port),
        "DMLC_NUM_WORKER": "4",
        "PET_NPROC_PER_NODE": "2",
    }
    pods = [launch(script=XGB, DMLC_TASK_ID=str(node), **environ) for node in (0, 1)]
    assert [pod.wait() for pod in pods] == [0, 0], pods[0].err + pods[1].err
    lines = sorted(line for pod in pods for line in pod.out.splitlines() if "] task" in line)
    assert lines == [f"[worker-{n // 2} r{n}] task {n} rank {n} 4 None 1" for n in range(4)]


PLAIN_RANK = """
import os, sys, time, trainkit
topology = trainkit.detect()
print("rank", topology.rank, topology.world_size, os.environ["OMP_NUM_THREADS"], flush=True)
if sys.argv[1:] == ["fail"] and topology.rank == 1:
    sys.exit(70)
time.sleep(60 * (sys.argv[1:] == ["fail"]))
"""


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed: its agent is used")
@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["fail"], 70)])
def test_ranks_where_there_is_no_torch(launch, arguments, code):
    one = launch("--nproc-per-node", 2, script=PLAIN_RANK, arguments=arguments)
    assert one.wait() == code, one.err
    assert sorted(one.out.splitlines()) == [f"[worker-0 r{n}] rank {n} 2 1" for n in range(2)]
