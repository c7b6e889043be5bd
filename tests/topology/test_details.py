"""Single questions about what a topology says beside its numbers."""

import pytest

from tests.topology.environs import (
    SLURM,
    seen,
    tf_config,
)
from trainkit.errors import TopologyError
from trainkit.topology import Role, Sight


@pytest.mark.parametrize("role", ["ps", "evaluator"])
def test_servers_and_evaluators_train_nothing(role):
    topology = seen(tf_config({"worker": ["a:1"], "ps": ["b:1"], "evaluator": ["c:1"]}, role))
    assert topology.rank is topology.local_rank is topology.node_rank is None
    assert topology.local_world_size == 0
    assert topology.world_size == 1


def test_steps_of_one_slurm_job_meet_at_different_ports():
    ports = {seen(SLURM | {"SLURM_STEP_ID": str(step)}).master_port for step in range(5)}
    assert len(ports) == 5
    tasks = {seen(SLURM | {"SLURM_PROCID": str(rank)}).master_port for rank in range(4)}
    assert len(tasks) == 1


def test_what_is_secret_is_not_shown():
    from trainkit.topology.parsing import shown

    assert "s3cr3t" not in shown(Sight({"MY_TOKEN": "s3cr3t"}), "MY_TOKEN")


def test_a_long_value_is_cut():
    with pytest.raises(TopologyError) as raised:
        seen({"RANK": "x" * 5000, "WORLD_SIZE": "2", "MASTER_ADDR": "h"})
    assert len(str(raised.value)) < 600


def test_roles_of_a_launcher_pod():
    topology = seen({"HYDRA_HOST_FILE": "/h"}, files={"/h": "a:2\n# a comment\n\nb\na:2\n"})
    assert topology.role is Role.LAUNCHER
    assert topology.runs_mpirun
    assert topology.hosts == [("a", 2), ("b", 1), ("a", 2)]
    assert topology.world_size == 5


def test_mpi_operator_03_writes_the_slots_into_a_variable_only():
    environ = {
        "OMPI_MCA_orte_default_hostfile": "/h",
        "OMPI_MCA_orte_set_default_slots": "4",
    }
    assert seen(environ, files={"/h": "a\nb slots=1\n"}).hosts == [("a", 4), ("b", 1)]
