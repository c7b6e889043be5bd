import json
import signal
from pathlib import Path

import pytest

from trainkit.errors import TopologyError
from trainkit.launch.mpi.plan import plan_mpirun
from trainkit.launch.mpi.tools import MpiTools
from trainkit.topology.detection import detect
from trainkit.topology.sight import Sight

COMMAND = ["python", "train.py", "--lr", "0.1"]
GOLDEN = Path(__file__).parents[2] / "golden"
CASES = {
    case["id"]: case
    for name in ("operators-v1", "operators-v2")
    for case in json.loads((GOLDEN / f"{name}.json").read_text())
    if case.get("expect", {}).get("role") == "launcher"
}
VERSIONS = {
    "openmpi-5": "mpirun (Open MPI) 5.0.11\n",
    "openmpi-4": "mpirun (Open MPI) 4.1.4\n",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626\n",
    "mpich": "HYDRA build details:\n    Version:      5.0.2\n",
}


def tools(kind="openmpi-5", **fields):
    known = {"mpirun": "/opt/mpi/bin/mpirun", "uid": 1000, "folder": "/tmp/job"}
    return MpiTools(version=VERSIONS[kind], **{**known, **fields})


def plan_of(case, kind="openmpi-5", environ=None, num_ranks=None, **fields):
    case = CASES[case]
    seen = Sight(
        environ={**case["environ"], **(environ or {})},
        files=case["files"],
        hostname=case.get("hostname", ""),
    )
    return plan_mpirun(
        detect(seen), COMMAND, seen.environ, num_ranks=num_ranks, tools=tools(kind, **fields)
    )


def pairs(argv, flag):
    """Name → value after each ``flag``."""
    found = [index for index, word in enumerate(argv) if word == flag]
    return {argv[index + 1]: argv[index + 2] for index in found}


def names(argv):
    return {argv[index + 1] for index, word in enumerate(argv) if word == "-x"}


def test_there_are_cases_of_each_kind():
    assert len(CASES) >= 8
    assert {"mpijob-launcher-2x2", "mpijob-v2-openmpi-launcher-2x2"} <= set(CASES)


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("kind", sorted(VERSIONS))
def test_every_launcher_starts_a_rank_a_slot_on_the_hosts_it_was_given(case, kind):
    plan = plan_of(case, kind)
    expect = CASES[case]["expect"]
    assert plan.implementation == kind
    assert [list(host) for host in plan.hosts] == expect["hosts"]
    assert plan.world_size == expect["world_size"]
    form = "{} slots={}" if kind.startswith("openmpi") else "{}:{}"
    lines = plan.files["/tmp/job/hostfile"].splitlines()
    assert lines == [form.format(*host) for host in expect["hosts"]]
    assert "/tmp/job/hostfile" in plan.argv
    assert plan.argv[plan.argv.index("-n") + 1] == str(expect["world_size"])
    at = len(plan.argv) - 1 - plan.argv[::-1].index("--")
    assert list(plan.argv[at + 1 :]) == COMMAND
    assert "trainkit.launch.mpi.rank" in plan.argv[:at]
    relayed = "trainkit.launch.mpi.hydra" in plan.argv
    assert relayed is ("--report" in plan.argv) is (not kind.startswith("openmpi"))


def test_open_mpi_5_is_told_what_it_ignores_in_variables():
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2")
    assert plan.argv[:3] == ("/opt/mpi/bin/mpirun", "--hostfile", "/tmp/job/hostfile")
    assert pairs(plan.argv, "--prtemca") == {
        "plm_ssh_agent": "ssh -F /tmp/job/ssh_config",
        "plm_ssh_args": "-o ConnectionAttempts=10",
        "plm_ssh_no_tree_spawn": "1",
        "prte_keep_fqdn_hostnames": "0",
    }
    assert "--allow-run-as-root" not in plan.argv
    assert plan.stop_signal == signal.SIGUSR1


def test_open_mpi_4_knows_the_same_by_other_names():
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2", "openmpi-4", uid=0)
    assert pairs(plan.argv, "--mca") == {
        "plm_rsh_agent": "ssh -F /tmp/job/ssh_config",
        "plm_rsh_args": "-o ConnectionAttempts=10",
        "plm_rsh_no_tree_spawn": "1",
        "orte_keep_fqdn_hostnames": "1",  # or ssh would be given names that resolve nowhere
    }
    assert "--allow-run-as-root" in plan.argv


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("openmpi-5", ("plm_ssh_agent", "/etc/mpi/kubexec.sh")),
        ("openmpi-4", ("plm_rsh_agent", "/etc/mpi/kubexec.sh")),
        ("intel", ("-bootstrap", "rsh", "-bootstrap-exec", "/etc/mpi/kubexec.sh")),
        ("mpich", ("-launcher", "rsh", "-launcher-exec", "/etc/mpi/kubexec.sh")),
    ],
)
def test_the_agent_of_a_v1_job_is_passed_on(kind, words):
    plan = plan_of("mpijob-launcher-2x2", kind)
    assert not plan.agent.is_ssh
    assert " ".join(words) in " ".join(plan.argv)
    assert list(plan.files) == ["/tmp/job/hostfile"]


def test_hydra_gets_an_address_where_workers_cannot_know_a_name():
    interface = ("eth0", "10.0.0.7")
    mpich = plan_of("mpijob-v2-openmpi-launcher-2x2", "mpich", interface=interface)
    assert mpich.argv[mpich.argv.index("-localhost") + 1] == "10.0.0.7"
    assert mpich.environ["HYDRA_LAUNCHER_EXTRA_ARGS"].startswith("-F /tmp/job/ssh_config")
    intel = plan_of("mpijob-v2-openmpi-launcher-2x2", "intel", interface=interface)
    assert intel.argv[intel.argv.index("-iface") + 1] == "eth0"
    assert intel.argv[intel.argv.index("-machine") + 1] == "/tmp/job/hostfile"
    assert "/opt/mpi/bin/mpiexec.hydra" in intel.argv


def test_variables_travel_by_name_and_without_the_launchers_own():
    environ = {
        "HF_TOKEN": "open-sesame",
        "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
        "MASTER_ADDR": "pi-worker-0",
        "RANK": "0",
        "PI_SERVICE_HOST": "10.0.0.1",
        "PI_PORT": "tcp://10.0.0.1:80",
    }
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2", environ=environ)
    assert names(plan.argv) == {
        "HF_TOKEN",
        "MASTER_ADDR",
        "NCCL_IB_HCA",
        "TRAINKIT_PREEMPTION_SIGNALS",
    }
    assert "open-sesame" not in " ".join(plan.argv) + "".join(plan.files.values())
    hydra = plan_of("mpijob-v2-openmpi-launcher-2x2", "mpich", environ=environ)
    listed = hydra.argv[hydra.argv.index("-genvlist") + 1]
    assert set(listed.split(",")) == names(plan.argv)


def test_signals_that_are_notices_already_stay_so():
    environ = {"TRAINKIT_PREEMPTION_SIGNALS": "USR2"}
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2", environ=environ)
    assert plan.environ["TRAINKIT_PREEMPTION_SIGNALS"] == "SIGUSR2,SIGUSR1"


def test_more_ranks_than_slots_name_the_field_that_gives_slots():
    with pytest.raises(TopologyError, match=r"5 ranks.*2 hosts have 2 \+ 2 = 4 slots") as caught:
        plan_of("mpijob-v2-openmpi-launcher-2x2", num_ranks=5)
    assert "slotsPerWorker" in str(caught.value)
    assert "numProcPerNode" in str(caught.value)


def test_fewer_ranks_than_slots_are_fine():
    assert plan_of("mpijob-v2-openmpi-launcher-2x2", num_ranks=3).world_size == 3


def test_hosts_that_differ_in_their_domains_alone_keep_them():
    text = "n.a.svc slots=1\nn.b.svc slots=1\n"
    environ = {"OMPI_MCA_orte_default_hostfile": "/h"}
    seen = Sight(environ=environ, files={"/h": text})
    plan = plan_mpirun(detect(seen), COMMAND, environ, tools=tools())
    assert pairs(plan.argv, "--prtemca")["prte_keep_fqdn_hostnames"] == "1"


def test_a_launcher_that_is_a_worker_too_goes_by_its_host_name():
    plan = plan_of("mpijob-v2-openmpi-launcher-as-worker", "openmpi-4", hostname="hvd-launcher")
    assert plan.files["/tmp/job/hostfile"].splitlines() == [
        "hvd-launcher slots=1",
        "hvd-worker-0.hvd.ml.svc slots=1",
        "hvd-worker-1.hvd.ml.svc slots=1",
    ]


def test_a_port_in_the_settings_goes_before_the_images():
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2", environ={"TRAINKIT_SSH_PORT": "2022"})
    lines = [line.strip() for line in plan.files["/tmp/job/ssh_config"].splitlines()]
    assert lines.index("Port 2022") < lines.index("Include ~/.ssh/config")


@pytest.mark.parametrize(("uid", "there"), [(0, False), (1000, True)])
def test_without_root_sshd_is_looked_for_where_others_may_listen(uid, there):
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2", uid=uid)
    lines = [line.strip() for line in plan.files["/tmp/job/ssh_config"].splitlines()]
    assert ("Port 2222" in lines) is there
    if there:  # what the image's files say goes before
        assert lines.index("Port 2222") > lines.index("Include /etc/ssh/ssh_config")


def test_ranks_without_mpi4py_are_told_where_to_meet():
    case = "mpijob-v2-openmpi-launcher-2x2"
    plan = plan_of(case, has_mpi4py=False)
    assert plan.environ["MASTER_ADDR"] == plan.hosts[0][0]
    assert plan.environ["MASTER_PORT"] == "29500"
    assert "MASTER_ADDR" in plan.argv
    given = plan_of(case, has_mpi4py=False, environ={"MASTER_ADDR": "mine"})
    assert "MASTER_ADDR" not in given.environ
    assert "MASTER_ADDR" not in plan_of(case).environ


def test_a_launcher_that_has_rank_0_gives_its_address():
    host = plan_of("mpijob-v2-openmpi-launcher-2x2").hosts[0][0]
    own = {"hostname": host.partition(".")[0], "interface": ("eth0", "10.0.0.9")}
    plan = plan_of("mpijob-v2-openmpi-launcher-2x2", has_mpi4py=False, **own)
    assert plan.environ["MASTER_ADDR"] == "10.0.0.9"
