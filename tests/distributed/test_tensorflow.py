"""TFJobs as real processes: what each role does, and what its loss means."""

import json
import re
import signal
import socket
import subprocess
import time
from importlib.util import find_spec

import pytest

from tests.distributed.pods import PYTHON, clean_environ
from tests.distributed.tfjob import CHIEF, EVALUATOR, PS, SCRIPT, WORKERS, messages, told
from trainkit.coordination.client import serve_store
from trainkit.coordination.frames import HELLO
from trainkit.strategies.tensorflow.tasks import control_address
from trainkit.topology import Sight, detect
from trainkit.waiting import Deadline

pytestmark = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="needs tensorflow-cpu: trainkit[tensorflow-cpu]"
)

SAMPLES = 128


def test_b086_b088_b089_every_role_does_its_part_and_ends_with_the_chief(jobs):
    """chief, ps, two workers and an evaluator, which others list and which does not list itself."""
    job = jobs(roles={"chief": 1, "evaluator": 1, "ps": 2, "worker": 2}, every=32, stop=128)
    servers = [PS, ("ps", 1), *WORKERS]
    job.start(CHIEF, *servers, index=str)
    job.start(EVALUATOR, listed=False)
    lines = job.lines(CHIEF, "done")
    begin = time.monotonic()
    job.end([CHIEF, *servers, EVALUATOR], seconds=60)
    assert time.monotonic() - begin < 30, "they hear of the end at once"

    first, done = lines[0], lines[-1]
    assert done["torch"] is False
    assert (first["total"], first["mean"]) == (1, [1, 2]), "the chief is a job of one rank"
    assert [device.split("/")[1] for device in first["devices"]] == ["job:ps", "job:ps"]
    seen = {0: [], 1: []}
    for line in lines[1:-1]:
        for worker, ids in zip(line["worker"], line["ids"], strict=True):
            seen[worker] += ids
    half = SAMPLES // 2
    for epoch in range(min(len(ids) // half for ids in seen.values())):  # shuffled anew in each
        parts = [ids[epoch * half : (epoch + 1) * half] for ids in seen.values()]
        assert sorted(parts[0] + parts[1]) == list(range(SAMPLES))
    assert len(seen[0]) >= half, "both workers had their part of at least one epoch"
    assert len(seen[1]) >= half
    assert lines[-2]["loss"][-1] < lines[1]["loss"][0] / 4

    evaluated = [line for line in told(job.output(EVALUATOR)) if "evaluated" in line]
    assert evaluated[-1] == {"evaluated": 128, "digest": done["digest"], "world_size": 1}


@pytest.mark.parametrize(
    "legacy", [pytest.param("", marks=pytest.mark.slow), "1"], ids=["keras-3", "keras-2"]
)
def test_b091_a_job_with_parameter_servers_outlives_the_loss_of_any_role(jobs, legacy):
    """A worker: training goes on. A ps: one message, 138, and on from the checkpoint."""
    variables = {"TF_USE_LEGACY_KERAS": legacy} if legacy else {}
    job = jobs(
        roles={"chief": 1, "ps": 1, "worker": 2}, every=64, stop=100_000, variables=variables
    )
    job.start(CHIEF, PS, *WORKERS)
    assert job.lines(CHIEF, "restored")[0]["keras"].startswith("2" if legacy else "3")
    job.lines(CHIEF, "step")
    job.kill(WORKERS[1])
    steps = [job.lines(CHIEF, "step")[0]["step"] for _ in range(40)]
    assert steps[-1] - steps[0] == 39 * 16, "every round is whole"

    job.kill(PS)
    (message,) = messages(job.end([CHIEF], code=138))
    assert re.search("ps 0|holds variables", message), message
    assert "checkpoint" in message
    assert "Traceback" not in job.output(CHIEF)

    job.start(PS, WORKERS[1], CHIEF)  # as the operator does; worker 0 waits by itself
    (again,) = job.lines(CHIEF, "restored")
    assert again["restored"] >= 64
    for _ in range(2):  # the second one comes after checkpoints.step of the first
        job.lines(CHIEF, "step")
    job.kill(CHIEF, signal.SIGTERM)
    (message,) = messages(job.end([CHIEF], code=143))
    found = re.search(r"stopped after step (\d+) as asked; it is saved", message)
    assert found, message
    stopped = int(found[1])

    job.start(CHIEF, stop=stopped + 32)
    lines = job.lines(CHIEF, "done")
    assert lines[0]["restored"] == stopped
    assert lines[-1]["done"] == stopped + 32
    job.end([CHIEF, PS, *WORKERS])


@pytest.mark.slow
def test_the_chief_is_killed_and_a_worker_comes_back(jobs):
    job = jobs(roles={"chief": 1, "ps": 1, "worker": 2}, every=64, stop=100_000)
    job.start(CHIEF, PS, *WORKERS)
    job.lines(CHIEF, "step")
    job.kill(WORKERS[0])
    job.lines(CHIEF, "step")
    job.start(WORKERS[0])
    job.read_until(WORKERS[0], "worker 0 serves at")
    for _ in range(2000):
        if 0 in job.lines(CHIEF, "step")[-1]["worker"]:
            break
    else:
        pytest.fail("the worker that came back got no step")
    job.kill(CHIEF)
    job.start(CHIEF)
    assert job.lines(CHIEF, "restored")[0]["restored"] >= 64
    for _ in range(2):
        job.lines(CHIEF, "step")
    job.kill(PS, signal.SIGTERM)  # its node is drained: the job is saved before it goes
    (message,) = messages(job.end([CHIEF], code=143))
    assert "it is saved" in message
    assert "after the chief was told to save" in job.end([PS], code=143)
    job.start(PS, CHIEF, stop=64)
    job.end([CHIEF, PS, *WORKERS])


def test_a_job_that_is_stopped_as_a_whole_is_saved_with_the_help_of_its_workers(jobs):
    """All pods hear of it at once; a round takes two seconds, and is not done without workers."""
    job = jobs(roles={"chief": 1, "ps": 1, "worker": 2}, every=100_000, stop=100_000, slow=0.13)
    job.start(CHIEF, PS, *WORKERS)
    for _ in range(2):  # the second one comes after checkpoints.step of the first
        job.lines(CHIEF, "step")
    for task in (*WORKERS, PS, CHIEF):
        job.kill(task, signal.SIGTERM)
    (message,) = messages(job.end([CHIEF], code=143, seconds=60))
    assert "it is saved" in message
    output = job.end(WORKERS, code=143)
    assert "worker 0 ends as asked; the whole job stops" in output
    job.end([PS], code=143)


@pytest.mark.slow
def test_an_evaluator_is_killed_and_a_worker_drained_while_training_goes_on(jobs):
    roles = {"chief": 1, "evaluator": 1, "ps": 1, "worker": 2}
    job = jobs(roles=roles, every=64, stop=100_000)
    job.start(CHIEF, PS, *WORKERS, EVALUATOR)
    first = job.lines(EVALUATOR, "evaluated")[-1]["evaluated"]
    job.kill(EVALUATOR)
    job.kill(WORKERS[1], signal.SIGTERM)
    job.end([WORKERS[1]], code=143)
    steps = [job.lines(CHIEF, "step")[-1]["step"] for _ in range(40)]
    assert steps[-1] - steps[0] == 39 * 16, "every round is whole"

    job.start(EVALUATOR)
    assert job.lines(EVALUATOR, "evaluated")[-1]["evaluated"] > first
    job.kill(EVALUATOR, signal.SIGTERM)
    job.end([EVALUATOR], code=143)
    job.lines(CHIEF, "step")
    job.kill(CHIEF, signal.SIGTERM)
    (message,) = messages(job.end([CHIEF], code=143))
    assert "it is saved" in message
    job.start(CHIEF, WORKERS[1], stop=64)
    job.end([CHIEF, PS, *WORKERS])


@pytest.mark.slow
def test_a_server_whose_chief_dies_before_it_has_reported_waits_for_the_next_one(jobs):
    job = jobs(roles={"chief": 1, "ps": 1, "worker": 1})
    job.start(PS)
    config = {"cluster": job.addresses, "task": {"type": "ps", "index": 0}}
    _, port = control_address(detect(Sight(environ={"TF_CONFIG": json.dumps(config)})))
    with socket.create_server(("127.0.0.1", port)) as first:
        greeted = False
        while not greeted:
            connection, _ = first.accept()
            with connection:
                greeted = connection.recv(len(HELLO)) == HELLO  # else it only looks who is there
                if greeted:
                    connection.sendall(HELLO)
    store = serve_store(port, Deadline(60))
    try:
        assert store.wait("serving/ps 0", 60)
        store.set("ended", b"1")
        job.end([PS])
    finally:
        store.close()


def test_the_missing_ones_of_a_job_are_named(jobs):
    job = jobs(roles={"chief": 1, "ps": 1, "worker": 1}, variables={"TRAINKIT_TIMEOUT": "3"})
    job.start(CHIEF)
    (message,) = messages(job.end([CHIEF], code=138))
    for task in (PS, WORKERS[0]):
        address = job.addresses[task[0]][0]
        assert f"{task[0]} {task[1]} at {address}" in message
    assert "Traceback" not in job.output(CHIEF)


def test_b095_workers_in_step_equal_one_process_and_the_chief_leaves_last(jobs):
    one = jobs("one", roles={"worker": 1}, batch=16, stop=12, execution=5)
    two = jobs("two", roles={"chief": 1, "worker": 1}, batch=8, stop=12, execution=5, after=2)
    one.start(("worker", 0))
    two.start(CHIEF, WORKERS[0])
    whole = one.lines(("worker", 0), "done")
    ranks = [two.lines(task, "done") for task in (CHIEF, WORKERS[0])]
    assert two.pod(CHIEF).poll() is None, "worker 0 had two seconds more to do"
    for job, tasks in ((one, [("worker", 0)]), (two, [WORKERS[0], CHIEF])):
        job.end(tasks)

    assert [rank[0]["total"] for rank in ranks] == [3, 3]
    assert [rank[0]["mean"] for rank in ranks] == [[1.5, 3.0]] * 2
    assert [rank[0]["digest"] for rank in ranks] == [whole[0]["digest"]] * 2
    assert ranks[0][-1]["digest"] == ranks[1][-1]["digest"]
    assert ranks[0][-1]["torch"] is False
    for line, first, second in zip(whole[1:-1], *(rank[1:-1] for rank in ranks), strict=True):
        together = [a + b for a, b in zip(first["ids"], second["ids"], strict=True)]
        assert together == line["ids"], "the same samples in every step"
        losses = [(a + b) / 2 for a, b in zip(first["loss"], second["loss"], strict=True)]
        assert losses == pytest.approx(line["loss"], rel=1e-4)
    for found, expected in zip(ranks[0][-1]["weights"], whole[-1]["weights"], strict=True):
        flat = [x for row in found for x in (row if isinstance(row, list) else [row])]
        wanted = [x for row in expected for x in (row if isinstance(row, list) else [row])]
        assert flat == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_a_lost_worker_in_step_ends_the_job_which_goes_on_when_all_are_back(jobs):
    job = jobs(roles={"worker": 2}, every=40, stop=100_000, pause=0.1)
    job.start(*WORKERS)
    job.read_until(WORKERS[0], "saved step 40")
    job.kill(WORKERS[1])
    output = job.end([WORKERS[0]], code=138, seconds=60)
    (message,) = messages(output)
    assert "worker 1 was lost" in message
    assert "Traceback" not in output

    job.start(WORKERS[0], variables={"TRAINKIT_TIMEOUT": "3"})
    (message,) = messages(job.end([WORKERS[0]], code=138))
    assert "missing: rank 1" in message

    job.start(*WORKERS, stop=100_000)
    assert job.lines(WORKERS[0], "restored")[0]["restored"] >= 40
    for _ in range(2):
        for task in WORKERS:
            job.lines(task, "step")
    job.kill(WORKERS[1], signal.SIGTERM)  # one alone is told, both save
    for task in WORKERS:
        assert "it is saved" in job.end([task], code=143)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_worker_that_dies_while_tensorflow_connects_is_named_and_not_waited_for(jobs, victim):
    """TensorFlow itself waits for ever, with Python's lock held."""
    job = jobs(roles={"worker": 2}, variables={"TRAINKIT_TIMEOUT": "20"})
    job.start(WORKERS[1 - victim])
    job.start(WORKERS[victim], dies=True)
    output = job.end([WORKERS[1 - victim]], code=-signal.SIGKILL)
    assert f"worker {victim} at {job.addresses['worker'][victim]} went away" in output
    job.end([WORKERS[victim]], code=-signal.SIGKILL)


def test_servers_and_roles_that_a_strategy_cannot_use_are_told_at_once(jobs):
    job = jobs(roles={"chief": 1, "ps": 1, "worker": 1}, strategy="multi_worker")
    job.start(CHIEF)
    (message,) = messages(job.end([CHIEF], code=78))
    assert "take PS out of the job" in message
    settings = {"strategy": "parameter_server"}
    bare = subprocess.run(
        [PYTHON, str(SCRIPT)],
        env=clean_environ(JOB=json.dumps(settings)),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=job.folder,
    )
    assert bare.returncode == 78
    assert "needs a cluster of chief, worker and ps" in bare.stderr
