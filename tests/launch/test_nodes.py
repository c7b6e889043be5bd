"""Launchers of several pods, here on one host: what happens when one of them is gone."""

import signal
import socket

import pytest

from tests.launch.conftest import PLAIN, TRAINING
from trainkit.testing import free_port
from trainkit.waiting import Deadline, wait_until

STEPS = 60


def weights(*launched):
    return {
        float(line.split()[-1])
        for one in launched
        for line in one.out.splitlines()
        if "weights" in line
    }


@pytest.fixture
def port():
    """Where the pods meet."""
    return free_port()


@pytest.fixture
def nodes(launch, tmp_path, port):
    """Start a launcher for one of two pods, as PyTorchJob's operator sets its variables."""

    def start(node, *flags, script=TRAINING, elastic=False, **environ):
        place = {
            "PET_NNODES": "1:2" if elastic else "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_MAX_RESTARTS": "3",
            "TRAINKIT_CHECKPOINT_DIR": str(tmp_path / "ckpt"),
            "TRAINKIT_TIMEOUT": "60",
            "STEPS": str(STEPS),
            "PAUSE": "0.05",
        }
        if elastic:
            place |= {
                "PET_RDZV_BACKEND": "c10d",
                "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
                "PET_RDZV_ID": "job",
                "PET_RDZV_CONF": "last_call_timeout=2,keep_alive_interval=1",
                "PET_NODE_RANK": str(node),
            }
        else:
            place |= {
                "PET_NODE_RANK": str(node),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
        return launch(*flags, script=script, **place | environ)

    return start


@pytest.fixture
def unbroken(launch, tmp_path):
    """The weights that a run ends with that nobody disturbs."""
    environ = {"TRAINKIT_CHECKPOINT_DIR": str(tmp_path / "unbroken"), "STEPS": str(STEPS)}
    one = launch("--nproc-per-node", 2, script=TRAINING, **environ)
    assert one.wait() == 0, one.err
    return weights(one)


@pytest.mark.parametrize("lost", [1, 0])
def test_a_node_that_is_killed_and_comes_back(nodes, unbroken, lost):
    both = [nodes(0), nodes(1)]
    both[lost].await_line(f"step {lost} 20")
    both[lost].process.kill()
    both[lost].wait()
    again = nodes(lost)
    assert again.wait() == 0, again.err
    other = both[1 - lost]
    assert other.wait() == 0, other.err
    assert other.out.count("began") == 2  # it was there twice, under one launcher
    assert weights(again, other) == unbroken
    began = [line for line in again.out.splitlines() if line.startswith("began")]
    assert began == [f"began {lost} 2 {began[0].split()[-1]}"]
    assert int(began[0].split()[-1]) >= 15


def test_a_lost_node_is_named_and_the_job_may_be_tried_again(nodes):
    script = PLAIN + "while True: meet()\n"
    both = [nodes(node, "--max-restarts", 0, script=script) for node in (0, 1)]
    both[0].await_line("there")
    both[1].await_line("there")
    both[1].process.kill()
    assert both[0].wait() == 138, both[0].err
    assert "node 1 gives no sign of life" in both[0].err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_launcher_that_waits_for_others_ends_at_once_when_asked(nodes, port, number, code):
    one = nodes(0)
    wait_until(lambda: _listens(port), what="it to wait for node 1", deadline=Deadline(60))
    one.process.send_signal(number)
    assert one.wait() == code
    assert f"{number.name} while no rank was running here" in one.err
    assert "trainjob worker 0" in one.err  # each launcher says what it is


def test_a_node_that_does_not_come_is_named(nodes):
    one = nodes(0, TRAINKIT_TIMEOUT="3")
    assert one.wait() == 138
    assert "missing: node 1" in one.err
    other = nodes(1, TRAINKIT_TIMEOUT="3")
    assert other.wait() == 138
    assert "node 1 to reach the master at 127.0.0.1" in other.err


@pytest.mark.parametrize("server", ["stays", "leaves"])
def test_an_elastic_job_goes_on_and_takes_back_who_returns(nodes, port, server):
    """The launcher that stays keeps its process, and its ranks start again in place."""
    environ = {"STEPS": "300", "EVERY": "1", "elastic": True}
    first = nodes(0, **environ)
    wait_until(lambda: _listens(port), what="the rendezvous to be served", deadline=Deadline(60))
    second = nodes(1, **environ)
    stays, leaves = (first, second) if server == "stays" else (second, first)
    stays.await_line("began 0 2" if server == "stays" else "began 1 2")
    stays.await_line("step", 10)
    leaves.process.send_signal(signal.SIGTERM)
    assert leaves.wait() == 143, leaves.err
    if server == "stays":
        stays.await_line(" 1 ", 1)  # alone, which it cannot be where the other served
    back = nodes(2, **environ)
    back.await_line("began")
    assert stays.wait() == 0, stays.err
    assert back.wait() == 0, back.err
    assert len(weights(stays, back)) == 1
    assert stays.out.count("began") >= 2


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
