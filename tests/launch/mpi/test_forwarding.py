import pytest

from trainkit.launch.mpi.forwarding import forwarded, preemption_signals

TRAVEL = {
    "AWS_SECRET_ACCESS_KEY": "x",
    "LD_LIBRARY_PATH": "/opt/lib",
    "LR": "0.1",
    "MASTER_ADDR": "pi-worker-0",
    "MASTER_PORT": "29500",
    "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
    "OMP_NUM_THREADS": "4",
    "PATH": "/usr/bin",
    "PYTHONPATH": "/app",
    "TRAINKIT_TIMEOUT": "60",
}


@pytest.mark.parametrize("name", sorted(TRAVEL))
def test_what_the_author_of_a_job_sets_travels(name):
    assert forwarded(TRAVEL).count(name) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("PET_NNODES", "2"),
        ("JOB_COMPLETION_INDEX", "0"),
        ("K_MPI_JOB_ROLE", "launcher"),
        ("OMPI_MCA_orte_default_hostfile", "/etc/mpi/hostfile"),
        ("OMPI_MCA_plm_rsh_agent", "/etc/mpi/kubexec.sh"),
        ("PRTE_MCA_prte_default_hostfile", "/etc/mpi/hostfile"),
        ("I_MPI_HYDRA_HOST_FILE", "/etc/mpi/hostfile"),
        ("HYDRA_HOST_FILE", "/etc/mpi/hostfile"),
        ("NVIDIA_VISIBLE_DEVICES", ""),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("HOSTNAME", "pi-launcher"),
        ("HOME", "/of/the/pod"),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
        ("PI_SERVICE_PORT_SSH", "22"),
        ("PI_PORT_22_TCP_ADDR", "10.0.0.1"),
        ("MASTER_PORT", "tcp://10.0.0.1:29500"),
        ("BASH_FUNC_module%%", "() { :; }"),
    ],
)
def test_what_is_the_launchers_own_stays(name, value):
    assert forwarded({name: value}) == ()


def test_signals_keep_their_order_and_are_not_told_twice():
    assert preemption_signals(["SIGTERM"]) == "SIGTERM,SIGUSR1"
    assert preemption_signals(["SIGUSR1", "SIGTERM"]) == "SIGUSR1,SIGTERM"
