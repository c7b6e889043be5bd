"""Who is asked, in which order, and who may add to them."""

import json
import logging
import sys
from contextlib import suppress

import pytest

from tests.topology.environs import (
    ELASTIC,
    HYDRA,
    OPEN_MPI,
    PYTORCHJOB,
    SLURM,
    TORCHRUN,
    TRAINJOB,
    XGBOOST,
    seen,
    tf_config,
)
from tests.topology.test_accepted import ACCEPTED
from tests.topology.test_golden import CASES, sight_of
from trainkit.errors import TopologyError
from trainkit.topology import Sight, detect
from trainkit.topology.detection import _LAUNCHERS, _PLATFORMS, _make, known_environments

EVERYTHING = PYTORCHJOB | XGBOOST | SLURM | OPEN_MPI | HYDRA | tf_config({"worker": ["a:1"]})


@pytest.mark.parametrize(
    ("environ", "platform"),
    [
        (EVERYTHING | TORCHRUN, "torchelastic"),
        (EVERYTHING, "mpi"),
        (PYTORCHJOB | XGBOOST | SLURM, "slurm"),
        (PYTORCHJOB | tf_config({"worker": ["a:1"]}), "tfjob"),
        (PYTORCHJOB | XGBOOST, "pytorchjob"),
        (ELASTIC | XGBOOST, "pytorchjob"),
        (TRAINJOB | {"WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "trainjob"),
    ],
)
def test_the_innermost_wins(environ, platform):
    assert seen(environ).platform == platform


def test_a_platform_is_asked_wherever_it_would_answer():
    """The variables in the table of ``detect`` save an import; they must not decide."""
    sights = [sight_of(case.values[0]) for case in CASES]
    sights += [Sight(row[0], **_hostname(row)) for row in ACCEPTED.values()]
    for sight in sights:
        for row in (*_LAUNCHERS, *_PLATFORMS):
            environment = _make(row)
            if environment.detect(sight) and row[2]:
                rows = [r for r in (*_LAUNCHERS, *_PLATFORMS) if r[:2] == row[:2]]
                marks = {mark for r in rows for mark in r[2]}
                assert any(sight.get(mark) for mark in marks), (row, sight.environ)


def _hostname(row):
    return {"hostname": row[2]["hostname"]} if len(row) > 2 and "hostname" in row[2] else {}


@pytest.mark.parametrize("environment", known_environments(), ids=lambda e: type(e).__name__)
def test_an_empty_sight_is_nobodys_and_an_error_that_helps(environment):
    if environment.name == "local":
        return
    assert not environment.detect(Sight())
    with pytest.raises(TopologyError, match=r"not set|expected"):
        environment.topology(Sight())


@pytest.mark.parametrize("environment", known_environments(), ids=lambda e: type(e).__name__)
def test_junk_is_never_more_than_a_topology_error(environment):
    names = {mark for row in (*_LAUNCHERS, *_PLATFORMS) for mark in row[2]}
    names |= {name for row in ACCEPTED.values() for name in row[0]}
    for junk in (
        "x",
        "-1",
        "\udce9",
        "9" * 5000,
        "[",
        '{"a": 1}',
        "1:",
        "²",
        "0",
        " 1 ",
        "[" * 9999,
    ):
        sight = Sight(dict.fromkeys(names, junk))
        with suppress(TopologyError):
            environment.detect(sight)
            environment.topology(sight)


def test_the_environment_of_this_process_by_default(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRAINKIT_PLATFORM", raising=False)
    assert detect().rank == 3


class TestTrainkitPlatform:
    def test_chooses(self):
        environ = PYTORCHJOB | {"TRAINKIT_PLATFORM": "local"}
        topology = seen(environ)
        assert (topology.platform, topology.world_size) == ("local", 2)  # PET_NPROC_PER_NODE
        assert topology.sources["platform"] == "TRAINKIT_PLATFORM"

    def test_names_the_old_operators(self):
        environ = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "job-master-0"}
        topology = seen(environ | {"TRAINKIT_PLATFORM": "PyTorchJob"})
        assert topology.platform == "pytorchjob"
        assert (topology.role, topology.role_index) == ("worker", 0)
        assert (topology.rank, topology.world_size, topology.master_port) == (1, 3, 23456)

    def test_chooses_among_those_of_one_name(self):
        assert seen(OPEN_MPI | {"TRAINKIT_PLATFORM": "mpi"}).rank == 2
        environ = {"HYDRA_HOST_FILE": "/h", "TRAINKIT_PLATFORM": "mpi"}
        assert seen(environ, files={"/h": "a:2"}).role == "launcher"

    def test_of_the_pod_does_not_make_its_ranks_start_ranks(self):
        pod = PYTORCHJOB | {"TRAINKIT_PLATFORM": "pytorchjob"}
        assert seen(pod).procs_to_launch == 2
        inside = seen(pod | TORCHRUN)
        assert (inside.platform, inside.rank, inside.procs_to_launch) == ("torchelastic", 3, 0)
        assert any("TRAINKIT_PLATFORM" in text for text in inside.unused)

    def test_switches_a_launcher_off(self):
        assert seen(TORCHRUN | {"TRAINKIT_PLATFORM": "local"}).world_size == 1
        assert seen(SLURM | OPEN_MPI | {"TRAINKIT_PLATFORM": "slurm"}).platform == "slurm"

    def test_without_what_it_needs(self):
        with pytest.raises(TopologyError, match="SLURM_STEP_ID is not set"):
            seen({"TRAINKIT_PLATFORM": "slurm"})

    def test_unknown(self):
        with pytest.raises(TopologyError, match=r"'slrum'.*slurm.*torchelastic"):
            seen({"TRAINKIT_PLATFORM": "slrum"})

    def test_empty_is_unset(self):
        assert seen(TORCHRUN | {"TRAINKIT_PLATFORM": ""}).platform == "torchelastic"

    def test_a_bad_setting_of_another_room_is_not_read(self):
        assert seen({"TRAINKIT_TIMEOUT": "soon"}).platform == "local"


PLUGIN = """
import os
from trainkit.topology import Topology

class Cloud:
    name = "cloud"
    def detect(self, sight):
        {detect}
    def topology(self, sight):
        {topology}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a plug-in as pip does, for as long as the test runs."""

    def _install(target="cloud_plugin:Cloud", detect="return 'CLOUD' in sight.environ", **more):
        topology = more.get("topology", "return Topology(platform=self.name, world_size=7)")
        module = more.get("module", PLUGIN.format(detect=detect, topology=topology))
        (tmp_path / "cloud_plugin.py").write_text(module)
        info = tmp_path / "cloud-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(
            f"[console_scripts]\ncloud = x:y\n\n[trainkit.environments]\n# ours\ncloud = {target}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    yield _install
    sys.modules.pop("cloud_plugin", None)


class TestPlugins:
    def test_is_asked_before_the_operators(self, install):
        install()
        assert seen(PYTORCHJOB | {"CLOUD": "1"}).platform == "cloud"
        assert seen(PYTORCHJOB).platform == "pytorchjob"

    def test_is_not_asked_where_a_launcher_answers(self, install):
        install(module="raise AssertionError('imported')")
        for environ in (TORCHRUN, OPEN_MPI, SLURM):
            assert seen(environ | {"CLOUD": "1"}).platform != "cloud"
        assert "cloud_plugin" not in sys.modules

    def test_by_name(self, install):
        install()
        assert seen({"TRAINKIT_PLATFORM": "cloud"}).world_size == 7

    @pytest.mark.parametrize(
        "broken",
        [
            {"target": "cloud_plugin:Nobody"},
            {"target": "not_installed_anywhere:Cloud"},
            {"module": "raise RuntimeError('at import')"},
            {"module": "Cloud = 3"},
            {"detect": "raise RuntimeError('while asked')"},
        ],
    )
    def test_a_broken_one_warns_and_is_skipped(self, install, caplog, broken):
        install(**broken)
        with caplog.at_level(logging.WARNING):
            assert seen(PYTORCHJOB | {"CLOUD": "1"}).platform == "pytorchjob"
        assert "cloud" in caplog.text
        assert "skipped" in caplog.text

    def test_one_that_recognises_and_fails_does_not_lead_to_training_alone(self, install):
        install(topology="return 1 / 0")
        with pytest.raises(TopologyError, match=r"plug-in 'cloud'.*ZeroDivisionError"):
            seen({"CLOUD": "1"})


def test_a_topology_can_be_written_as_json():
    for case in CASES:
        if "expect" in case.values[0]:
            json.dumps(detect(sight_of(case.values[0])).to_json())
