"""Rules of the contract that the golden cases do not show: what is to be understood."""

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
    TRAINJOB,
    XGBOOST,
    XGBOOSTJOB,
    seen,
    tf_config,
    without,
)

ACCEPTED = {
    "launch in the pod of a PyTorchJob, which sets no LOCAL_*": (
        PYTORCHJOB | {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"platform": "env", "rank": 0, "world_size": 4, "procs_to_launch": 0},
    ),
    "LOCAL_RANK alone in a pod's template is not a launcher": (
        PYTORCHJOB | {"LOCAL_RANK": "0"},
        {"platform": "pytorchjob", "rank": 2, "procs_to_launch": 2},
    ),
    "a flag overlays PET_MASTER_*": (
        PYTORCHJOB | {"PET_MASTER_ADDR": "other", "PET_MASTER_PORT": "1234"},
        {"master_addr": "other", "master_port": 1234},
    ),
    "a PyTorchJob without a port takes 23456": (
        without(PYTORCHJOB, "MASTER_PORT", "PET_MASTER_PORT"),
        {"master_addr": "job-master-0", "master_port": 23456},
    ),
    "WORLD_SIZE is not compared where nproc is a word": (
        PYTORCHJOB | {"PET_NPROC_PER_NODE": "auto", "WORLD_SIZE": "2"},
        {"rank": 1, "world_size": 2, "procs_to_launch": 0},
    ),
    "an empty PET_ is unset": (
        PYTORCHJOB | {"PET_NPROC_PER_NODE": "", "WORLD_SIZE": "2"},
        {"rank": 1, "world_size": 2},
    ),
    "elastic with one process still launches it": (
        ELASTIC | {"PET_NPROC_PER_NODE": "1"},
        {"procs_to_launch": 1, "rank": None, "world_size": None, "local_world_size": 1},
    ),
    "elastic without nproc is one process": (
        without(ELASTIC, "PET_NPROC_PER_NODE"),
        {"procs_to_launch": 1, "min_nodes": 1, "max_nodes": 3},
    ),
    "one number of nodes is a range of one": (
        ELASTIC | {"PET_NNODES": "3"},
        {"min_nodes": 3, "max_nodes": 3, "num_nodes": None},
    ),
    "an IPv6 endpoint": (
        ELASTIC | {"PET_RDZV_ENDPOINT": "[fd00::1]:23456"},
        {"master_addr": "fd00::1", "master_port": 23456},
    ),
    "standalone with a number": (
        ELASTIC | {"PET_STANDALONE": "1"},
        {"num_nodes": 1, "max_nodes": 1, "rank": 0, "world_size": 2, "master_addr": None},
    ),
    "standalone switched off": (ELASTIC | {"PET_STANDALONE": "0"}, {"max_nodes": 3}),
    "Workers only, one of them: no name is needed": (
        {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2"},
        {"platform": "pytorchjob", "rank": 0, "world_size": 2, "procs_to_launch": 2},
    ),
    "Workers only of operator 1.7, which sets no nproc": (
        {"PET_NNODES": "3"},
        {"platform": "pytorchjob", "role_index": 1, "rank": 1, "master_addr": "j-worker-0"},
        {"hostname": "j-worker-1"},
    ),
    "Workers only behind a Service called master": (
        {"PET_NNODES": "2", "MASTER_PORT": "tcp://10.0.0.1:80"},
        {"rank": 1, "master_addr": "j-worker-0", "master_port": 23456},
        {"hostname": "j-worker-1.ns.svc"},
    ),
    "a TrainJob whose author asks torchrun for c10d stays one": (
        TRAINJOB | {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "tj-node-0-0.tj:29400"},
        {"platform": "trainjob", "rank": 1, "world_size": 2, "master_port": 29500},
    ),
    "an endpoint is where nodes meet if there is nothing else": (
        without(TRAINJOB, "PET_MASTER_ADDR", "PET_MASTER_PORT") | {"PET_RDZV_ENDPOINT": "h:1"},
        {"platform": "trainjob", "node_rank": 1, "master_addr": "h", "master_port": 1},
    ),
    "WORLD_SIZE without RANK in a TrainJob does not count": (
        TRAINJOB | {"WORLD_SIZE": "9"},
        {"platform": "trainjob", "rank": 1, "world_size": 2},
    ),
    "words reach a TrainJob of Trainer 2.0": (
        TRAINJOB | {"PET_NPROC_PER_NODE": "gpu"},
        {"rank": 2, "world_size": 4, "procs_to_launch": 2},
        {"gpus": 2},
    ),
    "a node pod with all one-pod indexes": (
        TRAINJOB | {"JOB_COMPLETION_INDEX": "0"},
        {"rank": 1},
    ),
    "GPUs that do not divide the workers: one rank": (
        XGBOOST | {"DMLC_NUM_WORKER": "3"},
        {"rank": 1, "world_size": 3, "num_nodes": 3, "procs_to_launch": 0},
        {"gpus": 2},
    ),
    "a task id that leaves no room for GPUs: one rank": (
        XGBOOST | {"DMLC_TASK_ID": "2"},
        {"rank": 2, "world_size": 8, "num_nodes": 8, "procs_to_launch": 0},
        {"gpus": 4},
    ),
    "a number of processes beats the GPUs under XGBoost": (
        XGBOOST | {"PET_NPROC_PER_NODE": "1"},
        {"rank": 1, "num_nodes": 8},
        {"gpus": 4},
    ),
    "JAX before XGBoost, and neither has ranks to launch": (
        JAX | XGBOOST,
        {"platform": "trainjob", "rank": 1, "world_size": 2, "procs_to_launch": 0},
        {"gpus": 4},
    ),
    "uneven hosts leave the node unknown": (
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"},
        {"rank": 1, "world_size": 3, "node_rank": None, "num_nodes": None},
    ),
    "Open MPI 4 counts nodes: uneven ones are seen": (
        OPEN_MPI
        | {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
            "OMPI_MCA_orte_num_nodes": "2",
        },
        {"rank": 3, "node_rank": None, "num_nodes": 2},
    ),
    "ranks dealt in turn leave the node unknown": (
        OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "1"},
        {"node_rank": None, "num_nodes": 2},
    ),
    "Intel MPI says the node also where ranks are dealt in turn": (
        HYDRA | {"MPI_LOCALRANKID": "0", "HYDRA_BSTRAP_NODE_ID": "1"},
        {"rank": 1, "local_rank": 0, "node_rank": 1},
    ),
    "Hydra within a Slurm step is Hydra": (
        SLURM | HYDRA,
        {"platform": "mpi", "rank": 1, "world_size": 4},
    ),
    "PMI of Slurm's own is Slurm": (
        SLURM | {"PMI_RANK": "2", "PMI_SIZE": "4"},
        {"platform": "slurm", "rank": 2, "local_rank": 0},
    ),
    "the user's MASTER_ADDR reaches an MPI rank": (
        OPEN_MPI | {"MASTER_ADDR": "h", "MASTER_PORT": "29500"},
        {"master_addr": "h", "master_port": 29500},
    ),
    "the pod's MASTER_ADDR is not an MPI rank's": (
        OPEN_MPI | PYTORCHJOB,
        {"platform": "mpi", "rank": 2, "master_addr": None, "master_port": None},
    ),
    "a wrapper that copies MPI's numbers may give an address": (
        OPEN_MPI | {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "h"},
        {"platform": "mpi", "master_addr": "h"},
    ),
    "flux gives no local size": (
        {"PMI_RANK": "1", "PMI_SIZE": "4", "FLUX_TASK_RANK": "1", "FLUX_TASK_LOCAL_ID": "1"},
        {"platform": "mpi", "rank": 1, "world_size": 4, "local_rank": 1},
    ),
    "MVAPICH2 under Hydra": (
        HYDRA | {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "4"},
        {"platform": "mpi", "rank": 1, "world_size": 4},
    ),
    "the user's MASTER_* reach a Slurm task": (
        SLURM | {"MASTER_ADDR": "h", "MASTER_PORT": "1234"},
        {"master_addr": "h", "master_port": 1234},
    ),
    "Slurm counts requeues": (SLURM | {"SLURM_RESTART_COUNT": "2"}, {"restart_count": 2}),
    "pmix of Slurm marks no launcher pod": (
        {"OMPI_MCA_orte_precondition_transports": "x"},
        {"platform": "local"},
    ),
    "K_MPI_JOB_ROLE=launcher alone is no launcher": (
        {"K_MPI_JOB_ROLE": "launcher"},
        {"platform": "local", "rank": 0},
    ),
    "a worker pod whose image names a hostfile": (
        {"K_MPI_JOB_ROLE": "worker", "HYDRA_HOST_FILE": "/etc/mpi/hostfile"},
        {"platform": "mpi", "role": "worker", "rank": None, "role_index": 3},
        {"hostname": "pi-worker-3"},
    ),
    "an XGBoostJob without a port takes 9999": (
        without(XGBOOSTJOB, "MASTER_PORT"),
        {"platform": "xgboostjob", "master_port": 9999},
    ),
    "a JAXJob behind a service link takes 6666": (
        JAXJOB | {"COORDINATOR_PORT": "tcp://10.0.0.1:6666"},
        {"master_addr": "j-worker-0", "master_port": 6666},
    ),
    "a Paddle server": (
        PADDLE | {"PADDLE_SERVER_NUM": "1", "POD_IP_DUMMY": "10.0.0.1"},
        {"role": "ps", "rank": None, "node_rank": 0},
    ),
    "a Paddle trainer": (
        PADDLE | {"PADDLE_TRAINER_NUM": "1"},
        {"role": "worker", "rank": None, "node_rank": None},
    ),
    "an MXJob without scheduler": (
        {
            "MX_CONFIG": '{"cluster":{},"task":{"type":"worker","index":0}}',
            "DMLC_ROLE": "worker",
            "DMLC_NUM_WORKER": "1",
            "DMLC_NUM_SERVER": "0",
            "DMLC_PS_ROOT_URI": "",
            "DMLC_PS_ROOT_PORT": "0",
        },
        {"platform": "mxjob", "rank": 0, "world_size": 1, "master_addr": None},
    ),
    "Azure ML: processes, and no size of the node": (
        MASTER | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "NODE_RANK": "1"},
        {"rank": 5, "local_rank": 1, "local_world_size": 4, "node_rank": 1, "num_nodes": 2},
    ),
    "a port of a service link is none": (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "tcp://10.0.0.1:80"},
        {"master_addr": "h", "master_port": 29500},
    ),
    "nodes by a word": (
        MASTER | {"RANK": "1", "WORLD_SIZE": "2", "NPROC_PER_NODE": "auto"},
        {"rank": 4, "world_size": 8, "procs_to_launch": 4},
        {"gpus": 4},
    ),
    "launch --nproc-per-node in the pod of an old operator": (
        MASTER | {"RANK": "1", "WORLD_SIZE": "2", "PET_NPROC_PER_NODE": "4"},
        {"platform": "env", "rank": 4, "world_size": 8, "procs_to_launch": 4},
    ),
    "both sizes in an Indexed Job": (
        INDEXED | {"WORLD_SIZE": "8", "TRAINKIT_NUM_NODES": "2"},
        {"platform": "indexed-job", "rank": 4, "world_size": 8, "procs_to_launch": 4},
        {"gpus": 1},
    ),
    "WORLD_SIZE alone counts pods, whatever GPUs": (
        INDEXED | {"WORLD_SIZE": "2"},
        {"rank": 1, "world_size": 2, "procs_to_launch": 0},
        {"gpus": 4},
    ),
    "TRAINKIT_NUM_NODES without GPUs": (
        INDEXED | {"TRAINKIT_NUM_NODES": "2"},
        {"rank": 1, "world_size": 2, "procs_to_launch": 0},
    ),
    "one pod needs no address": (
        {"JOB_COMPLETION_INDEX": "0", "TRAINKIT_NUM_NODES": "1"},
        {"platform": "indexed-job", "rank": 0, "world_size": 1},
    ),
    "a JobSet by the form of its names": (
        INDEXED | {"WORLD_SIZE": "2", "MASTER_ADDR": "llm-workers-0-0.llm"},
        {"platform": "jobset", "rank": 1},
    ),
    "WORLD_SIZE=1 alone is a lone process": ({"WORLD_SIZE": "1"}, {"platform": "local"}),
    "TF_CONFIG={} switches the cluster off": ({"TF_CONFIG": "{}"}, {"platform": "local"}),
    "launch --nproc-per-node on one host": (
        {"PET_NPROC_PER_NODE": "3"},
        {"platform": "local", "rank": 0, "world_size": 3, "procs_to_launch": 3},
    ),
    "cpu counts what this pod may use": (
        {"PET_NPROC_PER_NODE": "cpu"},
        {"procs_to_launch": 2, "world_size": 2},
        {"cpus": (2.5, "cgroup quota")},
    ),
    "less than one CPU is one process": (
        {"PET_NPROC_PER_NODE": "cpu"},
        {"procs_to_launch": 0, "world_size": 1},
        {"cpus": (0.5, "cgroup quota")},
    ),
    "several chiefs": (
        tf_config({"chief": ["c0:1", "c1:1"], "worker": ["w0:1"]}, "worker", 0),
        {"rank": 2, "world_size": 3, "master_addr": "c0"},
    ),
    "a sparse chief sees nobody": (
        tf_config({"worker": {}, "ps": []}, "chief", 0),
        {"role": "chief", "rank": None, "world_size": None},
    ),
}


@pytest.mark.parametrize("rule", ACCEPTED)
def test_accepted(rule):
    environ, expected, *more = ACCEPTED[rule]
    found = seen(environ, **(more[0] if more else {})).to_json()
    assert {name: found[name] for name in expected} == expected
