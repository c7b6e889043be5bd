"""Groups of real ranks that are threads: XGBoost keeps its communicator per thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainkit.coordination import Communicator, MemoryStore
from trainkit.errors import EnvironmentFaultError
from trainkit.lifecycle.causes import exit_code_of, is_peer_loss
from trainkit.topology import Topology

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

from xgboost import collective  # noqa: E402 - needs xgboost
from xgboost.core import XGBoostError  # noqa: E402 - needs xgboost

from trainkit.strategies.xgboost.group import Group, address_for_all  # noqa: E402 - needs xgboost

ADDRESS = "127.0.0.1"


def together(world_size, work):
    """Call ``work(communicator)`` in a thread for each rank; what each returned, by rank."""
    store = MemoryStore()

    def rank(number):
        return work(Communicator(store, number, world_size, timeout=60))

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(rank, range(world_size)))


def test_ranks_are_those_of_the_job_though_there_are_more_than_ten():
    """XGBoost sorts tasks as text, where 10 comes before 2."""

    def work(communicator):
        group = Group.open(communicator, ADDRESS, 60)
        found = collective.get_rank(), collective.get_world_size()
        group.close()
        return found, collective.is_distributed()

    assert together(12, work) == [((rank, 12), False) for rank in range(12)]


def test_the_environment_alone_connects_nobody(monkeypatch):
    """Why everything is given explicitly: XGBoost reads no DMLC_* variable."""
    monkeypatch.setenv("DMLC_TRACKER_URI", ADDRESS)
    monkeypatch.setenv("DMLC_TRACKER_PORT", "29500")
    monkeypatch.setenv("DMLC_TASK_ID", "1")
    monkeypatch.setenv("DMLC_NUM_WORKER", "2")
    collective.init()
    try:
        assert not collective.is_distributed()
        assert collective.get_world_size() == 1
    finally:
        collective.finalize()


def test_a_group_that_is_not_the_jobs_is_refused():
    """As if another communicator had been opened beside this one."""

    def work(communicator):
        group = Group.open(communicator, ADDRESS, 60)
        stranger = Communicator(MemoryStore(), communicator.rank, 3)
        with pytest.raises(EnvironmentFaultError, match=r"rank \d of 2, and it is rank \d of 3"):
            group._check(stranger)
        return collective.is_distributed()

    assert together(2, work) == [False, False]


def test_a_rank_that_leaves_in_the_middle_is_a_lost_peer_for_the_others():
    left = threading.Event()

    def work(communicator):
        group = Group.open(communicator, ADDRESS, 60)
        if communicator.rank == 1:
            group.abandon(finalize=True)
            left.set()
            return None
        assert left.wait(60)
        with pytest.raises(XGBoostError) as raised:
            collective.broadcast("x" * 1000, 1)
        group.abandon(finalize=True)
        group.free_tracker()
        return raised.value

    error, _ = together(2, work)
    assert is_peer_loss(error)
    assert exit_code_of(error) == 138


def test_an_error_of_the_users_is_no_lost_peer():
    data = xgboost.DMatrix([[1.0], [2.0]], [0.0, 1.0])
    with pytest.raises(XGBoostError, match="nonsense") as raised:
        xgboost.train({"objective": "nonsense"}, data, 1)
    assert not is_peer_loss(raised.value)
    assert exit_code_of(raised.value) == 70


@pytest.mark.parametrize("master", ["localhost", "127.0.0.1", None])
def test_ranks_of_one_host_meet_on_loopback(master):
    topology = Topology(platform="env", master_addr=master, master_port=1)
    assert set(together(2, lambda c: address_for_all(c, topology))) == {ADDRESS}


def test_ranks_that_come_by_another_interface_meet_there(monkeypatch):
    """Rank 0 must come to its own tracker by it too, or others are told of a loopback address."""
    from trainkit.strategies.xgboost import group

    routes = {"job-master-0": ("eth0", "10.0.0.7"), "10.0.0.7": ("eth0", "10.0.0.3")}
    monkeypatch.setattr(group, "interface_towards", lambda host, port: routes.get(host))
    topology = Topology(platform="xgboostjob", master_addr="job-master-0", master_port=9999)
    assert set(together(3, lambda c: address_for_all(c, topology))) == {"10.0.0.3"}
