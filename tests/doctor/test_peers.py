"""Names of peers, in real DNS: those under .invalid are known to nobody."""

import pytest

from trainkit.doctor.peers import names_of
from trainkit.topology import Topology

ONLY = ("--only", "peers")
POD = {"WORLD_SIZE": 2, "RANK": 1, "MASTER_PORT": 29500}


def test_a_name_that_nobody_knows(doctor):
    told = doctor(*ONLY, "--timeout", 8, **POD, MASTER_ADDR="job-master-0.invalid")
    assert told.code == 78
    found = told.of("peers")
    assert found["values"]["unknown"] == ["job-master-0.invalid"]
    assert "job-master-0.invalid (" in found["found"]
    assert "headless Service" in found["advice"]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_name_that_is_known(doctor, name):
    told = doctor(*ONLY, **POD, MASTER_ADDR=name)
    assert told.of("peers")["status"] == "ok"


def test_no_peer(doctor):
    assert doctor(*ONLY).of("peers")["status"] == "not_checked"


def test_a_topology_that_contradicts_itself(doctor):
    told = doctor("--only", "topology", *ONLY, RANK=3, WORLD_SIZE=2, MASTER_ADDR="x")
    assert told.code == 78
    assert told.of("topology")["status"] == "broken"
    assert told.of("peers")["status"] == "not_checked"


def test_names_of_all_forms():
    topology = Topology(
        platform="tfjob",
        master_addr="m",
        hosts=[("a", 2), ("b", 2), ("a", 1)],
        cluster={"worker": ["w-0:2222", "[fd00::1]:2222"], "ps": ["m:2222"]},
    )
    assert names_of(topology) == ["m", "a", "b", "w-0", "fd00::1"]
