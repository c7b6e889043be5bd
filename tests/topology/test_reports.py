"""What users reported about rendezvous and roles, by the number of the report."""

import json

import pytest

from tests.topology.environs import ELASTIC, OPEN_MPI, TORCHRUN, seen, tf_config, without
from trainkit.errors import TopologyError

PODS = {
    "RANK": "1",
    "PET_NODE_RANK": "1",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "4",
    "MASTER_ADDR": "job-master-0",
    "MASTER_PORT": "23456",
}


class TestB001WorldSizeMeansPodsOrProcesses:
    @pytest.mark.parametrize("world_size", ["2", "8"])
    def test_both_are_one_world(self, world_size):
        topology = seen(PODS | {"WORLD_SIZE": world_size})
        assert (topology.world_size, topology.rank) == (8, 4)

    def test_a_third_value_is_an_error(self):
        with pytest.raises(TopologyError) as raised:
            seen(PODS | {"WORLD_SIZE": "5"})
        for text in ("WORLD_SIZE='5'", "2 or 8", "PET_NNODES", "PET_NPROC_PER_NODE"):
            assert text in str(raised.value)


def test_b003_torchruns_variables_override_the_pods():
    ranks = []
    for rank in range(4):
        inner = {"RANK": str(rank), "LOCAL_RANK": str(rank % 2), "GROUP_RANK": str(rank // 2)}
        topology = seen(PODS | {"WORLD_SIZE": "8"} | TORCHRUN | inner)
        ranks.append((topology.rank, topology.local_rank, topology.node_rank))
        assert topology.world_size == 4
        assert topology.procs_to_launch == 0
    assert ranks == [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]


class TestB005AutoOnACpuPod:
    def test_is_one_process_and_says_which_limit_there_is(self):
        topology = seen({"PET_NPROC_PER_NODE": "auto"}, cpus=(1.0, "CPU affinity"))
        assert (topology.local_world_size, topology.procs_to_launch) == (1, 0)
        assert "auto" in topology.notes[0]
        assert "1 by CPU affinity" in topology.notes[0]

    def test_cpu_is_the_limit_and_says_which(self):
        topology = seen({"PET_NPROC_PER_NODE": "cpu"}, cpus=(3.5, "cgroup quota in /x/cpu.max"))
        assert topology.procs_to_launch == 3
        assert "cgroup quota in /x/cpu.max" in topology.notes[0]

    def test_cpu_in_a_file_without_cpus(self):
        assert seen({"PET_NPROC_PER_NODE": "cpu"}).local_world_size == 1


class TestB013VariablesOfTheOtherLauncher:
    def test_mpirun_in_a_pod(self):
        environ = {
            "OMPI_COMM_WORLD_RANK": "0",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "RANK": "1",
            "WORLD_SIZE": "2",
        }
        topology = seen(environ)
        assert (topology.platform, topology.rank, topology.world_size) == ("mpi", 0, 2)
        assert "RANK='1'" in topology.unused[0]

    def test_leftovers_of_pmi_under_torchrun(self):
        environ = TORCHRUN | {"WORLD_SIZE": "2", "RANK": "1", "PMI_RANK": "0", "PMI_SIZE": "1"}
        topology = seen(environ)
        assert (topology.platform, topology.rank, topology.world_size) == ("torchelastic", 1, 2)
        assert "PMI_RANK='0'" in topology.unused[0]
        assert topology.notes == ()  # for the debug log, once; nothing to warn of


class TestEvaluator:
    """B086 and B088: is it in the cluster of TF_CONFIG or not?"""

    TRAINERS = {"chief": ["c:2222"], "ps": ["p:2222"], "worker": ["w:2222"]}  # noqa: RUF012

    @pytest.mark.parametrize("more", [{}, {"evaluator": ["e:2222"]}])
    @pytest.mark.parametrize("kind", ["chief", "evaluator"])
    def test_is_stripped(self, kind, more):
        topology = seen(tf_config(self.TRAINERS | more, kind))
        assert topology.cluster == self.TRAINERS
        assert topology.world_size == 2
        assert topology.role == kind
        assert topology.rank == (0 if kind == "chief" else None)

    def test_index_is_checked_only_where_it_is_listed(self):
        assert seen(tf_config(self.TRAINERS, "evaluator", 1)).role_index == 1
        with pytest.raises(TopologyError, match="evaluator 1"):
            seen(tf_config(self.TRAINERS | {"evaluator": ["e:1"]}, "evaluator", 1))


class TestB093TfConfigByHand:
    def test_an_index_in_quotes(self):
        topology = seen(tf_config({"worker": ["a:1", "b:1"]}, "worker", "1"))
        assert (topology.rank, topology.role_index) == (1, 1)

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ('{"cluster": {"worker": ["a:1"]}}', "task"),
            ('{"cluster": {"worker": ["a:1"],}, "task": {}}', '["a:1"],}'),
            ("{'cluster': {'worker': ['a:1']}}", "{'cluster'"),
            ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}', "'x'"),
        ],
    )
    def test_others_quote_the_place(self, text, place):
        with pytest.raises(TopologyError, match="TF_CONFIG") as raised:
            seen({"TF_CONFIG": text})
        assert place in str(raised.value)


class TestNotes:
    """What is seen and does not fit is said, not swallowed."""

    @pytest.mark.parametrize(
        ("environ", "gpus", "text"),
        [
            (without(PODS, "PET_NPROC_PER_NODE") | {"WORLD_SIZE": "2"}, 4, ""),
            (PODS | {"PET_NPROC_PER_NODE": "1", "WORLD_SIZE": "2"}, 4, "4 GPUs are visible"),
            (PODS | {"WORLD_SIZE": "8"}, 2, "4 ranks are to share 2 visible GPUs"),
            ({"RANK": "0", "WORLD_SIZE": "1"}, 2, "2 GPUs are visible"),
            (OPEN_MPI, 4, "4 GPUs are visible to a pod of 2 ranks"),
            ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 0, "srun"),
            ({"JOB_COMPLETION_INDEX": "1"}, 0, "TRAINKIT_NUM_NODES and MASTER_ADDR"),
            ({"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}, 0, "LWS_WORKER_INDEX"),
            ({"SM_HOSTS": json.dumps(["algo-1", "algo-2"])}, 0, "SageMaker"),
            (ELASTIC | {"RANK": "0", "WORLD_SIZE": "4"}, 0, "Master"),
            ({"K_MPI_JOB_ROLE": "launcher"}, 0, "hostfile"),
            ({"MX_CONFIG": "{}", "DMLC_ROLE": "server"}, 0, "PyTorchJob or TrainJob"),
        ],
    )
    def test_warns(self, environ, gpus, text):
        notes = " ".join(seen(environ, gpus=gpus).notes)
        assert text in notes

    @pytest.mark.parametrize(
        "environ",
        [
            {},
            {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"},
            {"SM_HOSTS": '["algo-1"]'},
            {"LWS_GROUP_SIZE": "1"},
            tf_config({"worker": ["a:1"]}),
        ],
    )
    def test_is_silent_where_nothing_is_wrong(self, environ):
        assert seen(environ, gpus=0).notes == ()
