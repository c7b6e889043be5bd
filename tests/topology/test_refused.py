"""Rules of the contract that the golden cases do not show: what must be an error."""

import pytest

from tests.topology.environs import (
    ELASTIC,
    HYDRA,
    INDEXED,
    JAX,
    JAXJOB,
    MASTER,
    OPEN_MPI,
    PADDLE,
    PYTORCHJOB,
    SLURM,
    TORCHRUN,
    TRAINJOB,
    XGBOOST,
    XGBOOSTJOB,
    seen,
    tf_config,
    without,
)
from trainkit.errors import TopologyError

REFUSED = {
    "RANK is not the pod's index": (PYTORCHJOB | {"RANK": "0"}, ["RANK", "PET_NODE_RANK", "0"]),
    "RANK beyond the pods": (
        PYTORCHJOB | {"RANK": "2", "PET_NODE_RANK": "2"},
        ["RANK", "PET_NNODES", "2"],
    ),
    "a pod without WORLD_SIZE": (without(PYTORCHJOB, "WORLD_SIZE"), ["WORLD_SIZE"]),
    "no pods at all": (PYTORCHJOB | {"WORLD_SIZE": "0"}, ["WORLD_SIZE", "0"]),
    "no master": (without(PYTORCHJOB, "MASTER_ADDR", "PET_MASTER_ADDR"), ["MASTER_ADDR"]),
    "a port beyond ports": (
        PYTORCHJOB | {"PET_MASTER_PORT": "70000"},
        ["PET_MASTER_PORT", "70000"],
    ),
    "a range without endpoint": (PYTORCHJOB | {"PET_NNODES": "1:2"}, ["PET_NNODES", "1:2"]),
    "a range that runs backwards": (ELASTIC | {"PET_NNODES": "3:1"}, ["PET_NNODES", "3:1"]),
    "a range from none": (ELASTIC | {"PET_NNODES": "0:2"}, ["PET_NNODES", "0:2"]),
    "an endpoint with a bad port": (
        ELASTIC | {"PET_RDZV_ENDPOINT": "h:http"},
        ["PET_RDZV_ENDPOINT", "h:http"],
    ),
    "no processes": (ELASTIC | {"PET_NPROC_PER_NODE": "0"}, ["PET_NPROC_PER_NODE", "0"]),
    "elastic gpu without GPU": (
        ELASTIC | {"PET_NPROC_PER_NODE": "gpu"},
        ["PET_NPROC_PER_NODE", "gpu"],
    ),
    "standalone, perhaps": (ELASTIC | {"PET_STANDALONE": "maybe"}, ["PET_STANDALONE", "maybe"]),
    "a worker beyond PET_NNODES": (
        {"PET_NNODES": "2"},
        ["PET_NNODES", "j-worker-2"],
        {"hostname": "j-worker-2"},
    ),
    "a TrainJob with a range": (TRAINJOB | {"PET_NNODES": "1:2"}, ["PET_NNODES", "1:2"]),
    "a TrainJob of no nodes": (TRAINJOB | {"PET_NNODES": "0"}, ["PET_NNODES", "0"]),
    "torchtune on several nodes": (
        without(TRAINJOB, "PET_MASTER_ADDR", "PET_MASTER_PORT"),
        ["PET_MASTER_ADDR"],
    ),
    "an unexpanded reference": (
        TRAINJOB | {"PET_NODE_RANK": "$(JOB_COMPLETION_INDEX)"},
        ["PET_NODE_RANK", "$(JOB_COMPLETION_INDEX)", "not expanded"],
    ),
    "JAX without the number of processes": (
        without(JAX, "JAX_NUM_PROCESSES"),
        ["JAX_NUM_PROCESSES"],
    ),
    "JAX without an id": (without(JAX, "JAX_PROCESS_ID"), ["JAX_PROCESS_ID"]),
    "JAX without an address": (
        without(JAX, "JAX_COORDINATOR_ADDRESS"),
        ["JAX_COORDINATOR_ADDRESS"],
    ),
    "JAX beyond its processes": (JAX | {"JAX_PROCESS_ID": "2"}, ["JAX_PROCESS_ID", "2"]),
    "XGBoost beyond its workers": (XGBOOST | {"DMLC_TASK_ID": "8"}, ["DMLC_TASK_ID", "8"]),
    "XGBoost without workers": (without(XGBOOST, "DMLC_NUM_WORKER"), ["DMLC_NUM_WORKER"]),
    "XGBoost without a port": (without(XGBOOST, "DMLC_TRACKER_PORT"), ["DMLC_TRACKER_PORT"]),
    "XGBoost on unequal nodes": (
        XGBOOST | {"PET_NPROC_PER_NODE": "3"},
        ["DMLC_NUM_WORKER", "PET_NPROC_PER_NODE"],
    ),
    "torchrun without RANK": (without(TORCHRUN, "RANK"), ["RANK"]),
    "torchrun without LOCAL_RANK": (without(TORCHRUN, "LOCAL_RANK"), ["LOCAL_RANK"]),
    "torchrun without MASTER_ADDR": (without(TORCHRUN, "MASTER_ADDR"), ["MASTER_ADDR"]),
    "torchrun without MASTER_PORT": (without(TORCHRUN, "MASTER_PORT"), ["MASTER_PORT"]),
    "a local rank beyond": (TORCHRUN | {"LOCAL_RANK": "2"}, ["LOCAL_RANK", "2"]),
    "a node larger than the world": (
        TORCHRUN | {"LOCAL_WORLD_SIZE": "8"},
        ["LOCAL_WORLD_SIZE", "WORLD_SIZE", "8"],
    ),
    "an MPI rank beyond": (
        OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "4"},
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "4"],
    ),
    "Hydra without a size": (without(HYDRA, "PMI_SIZE"), ["PMI_SIZE"]),
    "mpiexec -pmi-port gives no size": (
        {"PMI_ID": "1", "PMI_PORT": "h:1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        ["PMI_RANK", "PMI_SIZE", "-pmi-port"],
    ),
    "half of the local numbers": (
        without(OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ["OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    "a Slurm rank beyond": (
        SLURM | {"SLURM_PROCID": "4"},
        ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "4"],
    ),
    "a Slurm step without tasks": (
        without(SLURM, "SLURM_STEP_NUM_TASKS"),
        ["SLURM_STEP_NUM_TASKS"],
    ),
    "tasks per node of another step": (
        SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,2"},
        ["SLURM_STEP_TASKS_PER_NODE", "3,2", "SLURM_STEP_NUM_TASKS"],
    ),
    "hosts cut off": (
        SLURM | {"SLURM_STEP_NODELIST": "n[1-"},
        ["SLURM_STEP_NODELIST", "n[1-"],
    ),
    "WORKER_ADDRS of another job": (
        XGBOOSTJOB | {"WORKER_ADDRS": "a-worker-0"},
        ["WORKER_ADDRS", "WORLD_SIZE", "a-worker-0"],
    ),
    "half a JAXJob": (without(JAXJOB, "NUM_PROCESSES"), ["NUM_PROCESSES"]),
    "a JAXJob without an address": (
        without(JAXJOB, "COORDINATOR_ADDRESS"),
        ["COORDINATOR_ADDRESS"],
    ),
    "two ports of a JAXJob": (
        JAXJOB | {"COORDINATOR_ADDRESS": "j:1"},
        ["COORDINATOR_ADDRESS", "COORDINATOR_PORT"],
    ),
    "a PaddleJob without nodes": (without(PADDLE, "PADDLE_NNODES"), ["PADDLE_NNODES"]),
    "WORLD_SIZE without RANK": (MASTER | {"WORLD_SIZE": "2"}, ["RANK", "WORLD_SIZE"]),
    "RANK without WORLD_SIZE beside an index": (
        INDEXED | {"RANK": "1"},
        ["WORLD_SIZE"],
    ),
    "ranks without a place to meet": ({"RANK": "0", "WORLD_SIZE": "2"}, ["MASTER_ADDR"]),
    "a local size without a local rank": (
        MASTER | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        ["LOCAL_RANK"],
    ),
    "a local rank beyond the world": (
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1"},
        ["LOCAL_RANK", "WORLD_SIZE", "1"],
    ),
    "an index beyond TRAINKIT_NUM_NODES": (
        INDEXED | {"TRAINKIT_NUM_NODES": "1"},
        ["JOB_COMPLETION_INDEX", "TRAINKIT_NUM_NODES", "1"],
    ),
    "sizes that do not divide": (
        INDEXED | {"TRAINKIT_NUM_NODES": "2", "WORLD_SIZE": "5"},
        ["WORLD_SIZE", "TRAINKIT_NUM_NODES", "5", "2"],
    ),
    "TRAINKIT_NUM_NODES is a word": (
        INDEXED | {"TRAINKIT_NUM_NODES": "two"},
        ["TRAINKIT_NUM_NODES", "two"],
    ),
    "several nodes without an index": (
        {"TRAINKIT_NUM_NODES": "2", "MASTER_ADDR": "h"},
        ["TRAINKIT_NUM_NODES", "JOB_COMPLETION_INDEX"],
    ),
    "no task": ({"TF_CONFIG": '{"cluster":{"worker":["a:1"]}}'}, ["TF_CONFIG", "task"]),
    "no cluster": (
        {"TF_CONFIG": '{"task":{"type":"worker","index":0}}'},
        ["TF_CONFIG", "cluster"],
    ),
    "an index below 0": (tf_config({"worker": ["a:1"]}, "worker", -1), ["TF_CONFIG", "-1"]),
    "a type that is no text": (tf_config({"worker": ["a:1"]}, ["worker"]), ["TF_CONFIG"]),
    "a ps that is not in the cluster": (tf_config({"worker": ["a:1"]}, "ps"), ["TF_CONFIG", "ps"]),
    "chief and master": (
        tf_config({"chief": ["a:1"], "master": ["b:1"]}, "chief"),
        ["TF_CONFIG", "chief", "master"],
    ),
    "addresses in one text": (tf_config({"worker": "a:1"}), ["TF_CONFIG", "a:1"]),
    "TF_CONFIG is a list": ({"TF_CONFIG": "[]"}, ["TF_CONFIG", "list"]),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_refused(rule):
    environ, texts, *more = REFUSED[rule]
    with pytest.raises(TopologyError) as raised:
        seen(environ, **(more[0] if more else {}))
    for text in texts:
        assert text in str(raised.value)
    assert "\n" not in str(raised.value)
