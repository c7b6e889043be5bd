"""The TensorFlow recipe in jobs of several processes, to a stated accuracy."""

import json
from importlib.util import find_spec

import pytest

from tests.distributed.tfjob import CHIEF, EVALUATOR, PS, WORKERS, told

pytestmark = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="needs tensorflow-cpu: trainkit[tensorflow-cpu]"
)

RECIPE = ("-m", "trainkit.recipes.mnist_tensorflow")


def test_parameter_servers_an_evaluator_and_a_run_that_was_finished_already(jobs):
    flags = ("--epochs=3", "--checkpoint-every=100", "--steps-per-execution=25")
    job = jobs(roles={"chief": 1, "evaluator": 1, "ps": 1, "worker": 2}, command=(*RECIPE, *flags))
    job.start(CHIEF, PS, *WORKERS, EVALUATOR)
    (*_, done) = told(job.end([CHIEF, PS, *WORKERS, EVALUATOR], seconds=240))
    assert (done["event"], done["step"], done["steps_run"]) == ("done", 375, 375)
    assert done["test_accuracy"] > 0.94
    (*_, evaluated) = told(job.output(EVALUATOR))
    assert evaluated["step"] == 375
    assert evaluated["test_accuracy"] == pytest.approx(done["test_accuracy"])

    job.start(CHIEF, PS, *WORKERS)
    output = job.end([CHIEF, PS, *WORKERS], seconds=240)
    assert "nothing left: step 375 of 375" in output
    assert told(output)[-1]["steps_run"] == 0


def test_workers_in_step_trace_every_sample_once_an_epoch(jobs):
    flags = ("--epochs=3", "--trace=trace", "--output-dir=model", "--steps-per-execution=25")
    job = jobs(roles={"chief": 1, "worker": 1}, command=(*RECIPE, *flags))
    job.start(CHIEF, WORKERS[0])
    (*_, done) = told(job.end([CHIEF, WORKERS[0]], seconds=240))
    assert (done["step"], done["steps_run"]) == (186, 186)
    assert done["test_accuracy"] > 0.95
    assert (job.folder / "model" / "model.safetensors").is_file()
    ranks = []
    for rank in range(2):
        text = (job.folder / "trace" / f"rank-{rank}.jsonl").read_text()
        ranks.append([json.loads(line) for line in text.splitlines()])
        assert [line["step"] for line in ranks[rank]] == list(range(1, 187))
    for epoch in range(3):
        lines = [line for rank in ranks for line in rank if line["epoch"] == epoch]
        samples = [sample for line in lines for sample in line["samples"]]
        assert len(samples) == len(set(samples)) == 62 * 2 * 64
