"""Who is who in a TFJob; no TensorFlow is needed to tell."""

import json

import pytest

from trainkit.errors import StrategyError
from trainkit.strategies.tensorflow.tasks import Task, Tasks, control_address
from trainkit.topology import Sight, detect

CLUSTER = {
    "chief": ["job-chief-0:2222"],
    "ps": ["job-ps-0:2222", "job-ps-1:2222"],
    "worker": ["job-worker-0:2222", "job-worker-1:2222"],
}


def topology(role, index=0, **cluster):
    config = {"cluster": cluster or CLUSTER, "task": {"type": role, "index": index}}
    return detect(Sight(environ={"TF_CONFIG": json.dumps(config)}))


@pytest.mark.parametrize(
    ("role", "index", "own"),
    [
        ("chief", 0, Task("chief", 0)),
        ("ps", 1, Task("ps", 1)),
        ("worker", 1, Task("worker", 1)),
    ],
)
def test_a_job_with_a_chief_is_as_tf_config_says(role, index, own):
    tasks = Tasks.of(topology(role, index))
    assert tasks.own == own
    assert tasks.cluster == CLUSTER
    assert [str(task) for task in tasks.servers] == ["ps 0", "ps 1", "worker 0", "worker 1"]
    assert tasks.address(own) == f"job-{role}-{index}:2222"


def test_without_a_chief_worker_0_leads_and_the_others_count_from_0():
    cluster = {"ps": CLUSTER["ps"], "worker": ["a:1", "b:2", "c:3"]}
    assert Tasks.of(topology("worker", 0, **cluster)).own == Task("chief", 0)
    third = Tasks.of(topology("worker", 2, **cluster))
    assert third.own == Task("worker", 1)
    assert third.cluster == {"chief": ["a:1"], "worker": ["b:2", "c:3"], "ps": CLUSTER["ps"]}
    assert third.cluster == Tasks.of(topology("ps", 1, **cluster)).cluster


def test_an_evaluator_is_none_of_them():
    listed = {**CLUSTER, "evaluator": ["job-evaluator-0:2222"]}
    for cluster in (CLUSTER, listed):
        tasks = Tasks.of(topology("evaluator", 0, **cluster))
        assert (tasks.own, tasks.cluster) == (None, CLUSTER)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"chief": ["a:1", "b:1"], "ps": ["c:1"], "worker": ["d:1"]}, "has 2: write replicas: 1"),
        ({"chief": ["a:1"], "worker": ["d:1"]}, "at least one ps"),
        ({"chief": ["a:1"], "ps": ["c:1"]}, "at least one worker beside the chief"),
        ({"ps": ["c:1"], "worker": ["d:1"]}, "worker 0 leads it"),
    ],
)
def test_a_cluster_that_cannot_train_says_what_it_lacks(cluster, words):
    role = "chief" if "chief" in cluster else "worker"
    with pytest.raises(StrategyError, match=words):
        Tasks.of(topology(role, 0, **cluster))


def test_a_sparse_cluster_is_refused():
    sparse = {"ps": {"0": "job-ps-0:2222"}}
    with pytest.raises(StrategyError, match="enableDynamicWorker"):
        Tasks.of(topology("ps", 0, **sparse))


def test_all_find_the_chiefs_other_port_and_none_is_taken_twice():
    assert control_address(topology("ps", 0)) == ("job-chief-0", 2223)
    one_host = {
        "chief": ["localhost:2222"],
        "ps": ["localhost:2223"],
        "worker": ["localhost:2224", "localhost:2226"],
    }
    found = {control_address(topology(role, 0, **one_host)) for role in one_host}
    assert found == {("localhost", 2225)}
    with pytest.raises(StrategyError, match="65535"):
        control_address(topology("chief", 0, **{**CLUSTER, "chief": ["a:65535"]}))


def test_outside_of_a_cluster_there_is_none():
    assert control_address(detect(Sight(environ={}))) is None
