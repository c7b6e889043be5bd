"""What operators and launchers write, to be varied by the tests, and a way to look at it."""

import json

from trainkit.topology import Sight, detect

MASTER = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
PYTORCHJOB = {
    **MASTER,
    "PET_MASTER_ADDR": "job-master-0",
    "PET_MASTER_PORT": "23456",
    "RANK": "1",
    "PET_NODE_RANK": "1",
    "WORLD_SIZE": "4",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "2",
}
ELASTIC = {
    "PET_RDZV_ENDPOINT": "job-worker-0:23456",
    "PET_RDZV_BACKEND": "c10d",
    "PET_NNODES": "1:3",
    "PET_NPROC_PER_NODE": "2",
}
TRAINJOB = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_NPROC_PER_NODE": "1",
    "PET_MASTER_ADDR": "tj-node-0-0.tj",
    "PET_MASTER_PORT": "29500",
    "JOB_COMPLETION_INDEX": "1",
}
JAX = {
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
    "JAX_COORDINATOR_ADDRESS": "tj-node-0-0.tj:29500",
}
XGBOOST = {
    "DMLC_TRACKER_URI": "tj-node-0-0.tj",
    "DMLC_TRACKER_PORT": "29500",
    "DMLC_TASK_ID": "1",
    "DMLC_NUM_WORKER": "8",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29500",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
XGBOOSTJOB = {**MASTER, "RANK": "1", "WORLD_SIZE": "3", "WORKER_ADDRS": "a-worker-0,a-worker-1"}
JAXJOB = {
    "COORDINATOR_ADDRESS": "j-worker-0",
    "COORDINATOR_PORT": "6666",
    "NUM_PROCESSES": "2",
    "PROCESS_ID": "1",
}
PADDLE = {"PADDLE_JOB_ID": "p", "PADDLE_NNODES": "3", "PADDLE_MASTER": "p-master-0:36543"}
INDEXED = {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "t-0.t", "MASTER_PORT": "29400"}


def tf_config(cluster, kind="worker", index=0, **more):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def seen(environ, gpus=0, hostname="", files=None, cpus=None):
    sight = Sight(
        environ=environ, files=files or {}, hostname=hostname, visible_gpus=gpus, cpus=cpus
    )
    return detect(sight)


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}
