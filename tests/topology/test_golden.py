"""Every published case: what one process sees, and the topology that must come out."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from trainkit.errors import TopologyError
from trainkit.topology import Sight, Topology, detect

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    pytest.param(case, id=case["id"])
    for path in sorted(GOLDEN.glob("*.json"))
    for case in json.loads(path.read_text())
]


def sight_of(case):
    return Sight(
        environ=case["environ"],
        files=case.get("files", {}),
        hostname=case.get("hostname", ""),
        visible_gpus=case.get("visible_gpus", 0),
    )


@pytest.mark.parametrize("case", CASES)
def test_topology(case):
    if "error" in case:
        with pytest.raises(TopologyError) as raised:
            detect(sight_of(case))
        for text in [*case["error"].get("names", []), *case["error"].get("values", [])]:
            assert text in str(raised.value)
        return
    found = detect(sight_of(case)).to_json()
    for name, expected in case["expect"].items():
        if name == "platform" and isinstance(expected, list):
            assert found[name] in expected
        else:
            assert found[name] == expected, name


@pytest.mark.parametrize("case", [c for c in CASES if "expect" in c.values[0]])
def test_every_field_that_says_something_has_a_source(case):
    topology = detect(sight_of(case))
    defaults = Topology(platform=topology.platform)
    for spec in fields(Topology):
        if spec.name in ("platform", "notes", "unused", "sources"):
            continue
        value = getattr(topology, spec.name)
        if value is not None and value != getattr(defaults, spec.name):
            assert spec.name in topology.sources, spec.name


def test_all_cases_are_there():
    assert len(CASES) == 139
