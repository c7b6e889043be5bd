"""Local SGD on parameter servers: equal to DDP where mathematics says so, and hard to kill."""

import json
import signal

import pytest

torch = pytest.importorskip("torch")

from tests.distributed.served import AVERAGING, JOB, PRELOAD, Job, trained_by_ddp  # noqa: E402
from trainkit.testing import free_port, start_ranks  # noqa: E402


@pytest.fixture
def job(tmp_path):
    """A function that makes a job; all of it is ended when the test is."""
    made = []

    def make(**options):
        folder = tmp_path / f"job-{len(made)}"
        folder.mkdir()
        made.append(Job(folder, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def assert_equal(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def losses(job, rank=0):
    """Step → loss, as it was done last."""
    return {line["step"]: line["loss"] for line in job.steps(rank)}


@pytest.mark.parametrize("servers", [1, 2])
def test_averaging_after_every_step_is_data_parallel_training(job, tmp_path, servers):
    """SGD's step is linear in the gradient, with momentum and weight decay too: the mean of steps
    is the step of the mean. What is left is rounding, of a few parts in 10^7 a step, over 40
    steps in which a small net amplifies it."""
    expected = trained_by_ddp(tmp_path / "ddp")
    served = job(servers=servers, **AVERAGING)
    served.start_all()
    served.end()
    assert_equal(served.result(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(served.result(0)["0.weight"], served.result(1)["0.weight"])
    assert "of 256.0" in served.output("chief-0")


def test_eight_steps_between_rounds_learn_too_and_leave_all_workers_with_one_model(job):
    served = job(servers=2, workers=2, TRAINKIT_SYNC_EVERY="8", JOB_STEPS="45")
    served.start_all()
    served.end()
    for rank in (1, 2):
        assert_equal(served.result(rank), served.result(0), rtol=0, atol=0)
    found = losses(served)
    assert sum(found[s] for s in range(36, 46)) < 0.7 * sum(found[s] for s in range(1, 11))
    assert int(served.output("chief-0").rpartition("right")[2].split()[0]) > 180


def test_half_of_the_bytes_train_as_well(job):
    served = job(TRAINKIT_SYNC_EVERY="4", TRAINKIT_WIRE="bf16")
    served.start_all()
    served.end()
    assert_equal(served.result(1), served.result(0), rtol=0, atol=0)
    assert int(served.output("chief-0").rpartition("right")[2].split()[0]) > 180


def test_batch_norms_statistics_are_averaged(job):
    served = job(TRAINKIT_SYNC_EVERY="5", JOB_NORM="1", JOB_STEPS="20")
    served.start_all()
    served.end()
    one, two = served.result(0), served.result(1)
    assert torch.equal(one["1.running_mean"], two["1.running_mean"])
    assert one["1.running_mean"].abs().max() > 0


def test_a_killed_worker_is_not_waited_for_and_comes_back_where_the_others_are(job):
    served = job(workers=2, TRAINKIT_SYNC_EVERY="2", JOB_STEPS="400", JOB_PAUSE="0.1")
    served.start_all()
    served.pods["worker-1"].wait_for("did step 8")
    served.pods["worker-1"].kill()
    served.pods.pop("worker-1").wait(30)
    served.start("worker-1")
    served.pods["worker-1"].wait_for("begins at")
    served.hurry()
    served.end()
    assert "goes on without it" in served.output("ps-0")
    first = int(served.output("worker-1").partition("begins at ")[2].split(",")[0])
    assert 8 <= first < 400
    assert first % 2 == 0
    # It has the samples that go with the step: the epoch's order is the same for all.
    by_step = {line["step"]: line["ids"] for line in served.steps(0)}
    for line in served.steps(2):
        assert not set(line["ids"]) & set(by_step[line["step"]])
    assert_equal(served.result(2), served.result(0), rtol=0, atol=0)


def test_a_killed_worker_that_never_comes_back_does_not_keep_the_job(job):
    served = job(TRAINKIT_SYNC_EVERY="2", JOB_STEPS="60", JOB_PAUSE="0.1")
    served.start_all()
    served.pods["worker-0"].wait_for("did step 8")
    served.pods["worker-0"].kill()
    served.hurry()
    served.end(worker_0=-signal.SIGKILL)
    assert "right" in served.output("chief-0")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_server_gets_its_part_back_and_nothing_is_lost(job, victim):
    """The chief has the parameters and the momentum: the run is, bit for bit, the unbroken one."""
    options = {"servers": 2, "TRAINKIT_SYNC_EVERY": "4", "JOB_STEPS": "60"}
    unbroken = job(**options)
    unbroken.start_all()
    unbroken.end()
    served = job(**options, JOB_PAUSE="0.1")
    served.start_all()
    served.pods["chief-0"].wait_for("did step 20")
    served.pods[f"ps-{victim}"].kill()
    served.hurry()
    served.pods.pop(f"ps-{victim}").wait(30)
    served.start(f"ps-{victim}")
    served.end()
    assert "given those of round" in served.output("chief-0")
    assert losses(served) == losses(unbroken)
    assert_equal(served.result(), unbroken.result(), rtol=0, atol=0)


def test_a_killed_chief_comes_back_where_the_others_are(job):
    served = job(TRAINKIT_SYNC_EVERY="2", JOB_STEPS="400", JOB_PAUSE="0.1")
    served.start_all(TRAINKIT_CHECKPOINT_DIR=str(served.folder / "ckpt"))
    served.pods["chief-0"].wait_for("did step 20")
    served.pods["chief-0"].kill()
    served.pods.pop("chief-0").wait(30)
    served.start("chief-0", TRAINKIT_CHECKPOINT_DIR=str(served.folder / "ckpt"))
    served.pods["chief-0"].wait_for("begins at")
    served.hurry()
    served.end()
    first = int(served.output("chief-0").partition("begins at ")[2].split(",")[0])
    assert 20 <= first < 400
    assert_equal(served.result(1), served.result(0), rtol=0, atol=0)


def test_a_notice_to_the_chief_stops_all_after_one_step_and_loses_nothing(job):
    """SIGTERM in the middle of a round: what follows is the unbroken run's, but for the order in
    which a round was cut."""
    served = job(servers=2, TRAINKIT_SYNC_EVERY="7", JOB_STEPS="150", JOB_PAUSE="0.1")
    folder = str(served.folder / "ckpt")
    served.start_all(TRAINKIT_CHECKPOINT_DIR=folder)
    served.pods["chief-0"].wait_for("did step 20")
    served.pods["chief-0"].signal(signal.SIGTERM)
    served.end(chief_0=143, worker_0=143, ps_0=143, ps_1=143)
    last = [served.steps(rank)[-1]["step"] for rank in (0, 1)]
    assert last[0] == last[1] < 150
    assert "it is saved in" in served.output("chief-0")
    served.start_all(TRAINKIT_CHECKPOINT_DIR=folder)
    served.end()
    for rank in (0, 1):
        done = [line["step"] for line in served.steps(rank)]
        assert done == list(range(1, 151))
    for step in range(1, 151):
        parts = [served.steps(rank)[step - 1]["ids"] for rank in (0, 1)]
        assert not set(parts[0]) & set(parts[1])


def test_a_notice_to_a_server_stops_the_job_in_order(job):
    served = job(servers=2, TRAINKIT_SYNC_EVERY="4", JOB_STEPS="400", JOB_PAUSE="0.1")
    served.start_all(TRAINKIT_CHECKPOINT_DIR=str(served.folder / "ckpt"))
    served.pods["chief-0"].wait_for("did step 8")
    served.pods["ps-1"].signal(signal.SIGTERM)
    served.end(chief_0=143, worker_0=143, ps_0=143, ps_1=143)
    assert "it is saved in" in served.output("chief-0")


def test_a_notice_to_a_worker_is_its_own(job):
    served = job(TRAINKIT_SYNC_EVERY="4", JOB_STEPS="60", JOB_PAUSE="0.1")
    served.start_all()
    served.pods["worker-0"].wait_for("did step 8")
    served.pods["worker-0"].signal(signal.SIGTERM)
    served.pods["worker-0"].wait_for("the others go on")
    served.hurry()
    served.end(worker_0=143)
    assert "the others go on" in served.output("worker-0")


def test_a_job_that_was_killed_goes_on_from_its_checkpoint(job):
    options = {"TRAINKIT_SYNC_EVERY": "4", "JOB_STEPS": "60", "JOB_MOMENTUM": "0"}
    served = job(servers=2, JOB_PAUSE="0.1", **options)
    folder = str(served.folder / "ckpt")
    served.start_all(TRAINKIT_CHECKPOINT_DIR=folder)
    served.pods["chief-0"].wait_for("did step 20")
    served.hurry()
    for pod in served.pods.values():
        pod.kill()
    for pod in served.pods.values():
        pod.wait(30)
    served.start_all(TRAINKIT_CHECKPOINT_DIR=folder)
    served.end()
    first = [
        int(served.output(n).partition("begins at ")[2].split(",")[0])
        for n in ("chief-0", "worker-0")
    ]
    assert first[0] == first[1] > 0
    assert first[0] % 4 == 0
    # As if it had never been killed, since SGD without momentum has no state: the outer momentum
    # and the position in the data were in the checkpoint.
    unbroken = job(**options)
    unbroken.start_all()
    unbroken.end()
    assert losses(served) == pytest.approx(losses(unbroken), rel=1e-6)


def test_a_server_and_the_chief_killed_together_set_the_job_back(job):
    """Nobody has all that was on that server: the checkpoint has, and the other worker comes in
    anew."""
    served = job(servers=2, TRAINKIT_SYNC_EVERY="2", JOB_STEPS="100", JOB_PAUSE="0.1")
    folder = str(served.folder / "ckpt")
    served.start_all(TRAINKIT_CHECKPOINT_DIR=folder)
    served.pods["chief-0"].wait_for("did step 20")
    for name in ("ps-1", "chief-0"):
        served.pods[name].kill()
        served.pods.pop(name).wait(30)
    served.start("ps-1", "chief-0", TRAINKIT_CHECKPOINT_DIR=folder)
    assert served.pods.pop("worker-0").wait(60).exit_code == 138
    served.start("worker-0", TRAINKIT_CHECKPOINT_DIR=folder)
    served.hurry()
    served.end()
    assert losses(served).keys() == set(range(1, 101))


def test_a_checkpoint_of_data_parallel_training_goes_on_here_and_back(job, tmp_path):
    """With SGD without momentum, whose state is none, all of it is one run."""
    plain = {"JOB_MOMENTUM": "0"}
    kept = {**plain, "TRAINKIT_CHECKPOINT_DIR": str(tmp_path / "ckpt")}
    trained_by_ddp(tmp_path / "ddp", JOB_STEPS="10", **kept)
    served = job(**AVERAGING, JOB_STEPS="20", **kept)
    served.start_all()
    served.end()
    assert "begins at 10" in served.output("worker-0")
    found = trained_by_ddp(tmp_path / "again", JOB_STEPS="40", **kept)
    assert_equal(found, trained_by_ddp(tmp_path / "whole", **plain), rtol=1e-4, atol=1e-6)


def test_the_mnist_recipe_learns_in_a_tfjob_with_the_settings_of_its_yaml(job):
    served = job()
    kinds = ("ps", "chief", "worker")
    settings = {
        "TRAINKIT_SYNC_EVERY": "16",
        "TRAINKIT_OUTER_LR": "1",
        "TRAINKIT_OUTER_MOMENTUM": "0",
    }
    environs = [
        {
            **served.environ,
            **settings,
            "TF_CONFIG": json.dumps(
                {"cluster": served.cluster, "task": {"type": kind, "index": 0}}
            ),
        }
        for kind in kinds
    ]
    flags = ["--strategy", "parameter_server"]
    recipe = "-m trainkit.recipes.mnist"
    with start_ranks(recipe, 3, argv=flags, env=environs, cwd=served.folder, timeout=120) as ranks:
        results = ranks.wait()
    done = json.loads(results[1].stdout.splitlines()[-1])
    assert done["test_accuracy"] >= 0.97
    assert done["step"] == 378


def mxjob(role, index, ports, workers):
    """A pod of an MXJob, as training-operator 1.8 makes it (golden case mxjob-worker-1)."""
    cluster = {
        kind: [{"url": "127.0.0.1", "port": port} for port in found]
        for kind, found in ports.items()
    }
    labels = dict.fromkeys(ports, "")
    task = {"type": role, "index": index}
    environ = {
        "MX_CONFIG": json.dumps({"cluster": cluster, "labels": labels, "task": task}),
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(ports["scheduler"][0]),
        "DMLC_NUM_SERVER": str(len(ports["server"])),
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_ROLE": role,
        "DMLC_USE_KUBERNETES": "1",
    }
    return environ | ({"DMLC_WORKER_ID": str(index)} if role == "worker" else {})


def mxjob_ports(**counts):
    """A port for every pod, by role."""
    return {role: [free_port() for _ in range(count)] for role, count in counts.items()}


def start_mxjob(served, ports, *roles):
    for role in roles:
        for index in range(len(ports[role])):
            served.start_as(f"{role}-{index}", **mxjob(role, index, ports, len(ports["worker"])))


def test_an_mxjob_trains_torch_and_its_scheduler_ends_with_it(job):
    served = job(TRAINKIT_SYNC_EVERY="4")
    ports = mxjob_ports(scheduler=1, server=2, worker=2)
    start_mxjob(served, ports, "scheduler", "server", "worker")
    served.end()
    assert_equal(served.result(1), served.result(0), rtol=0, atol=0)


def test_a_scheduler_that_comes_late_hears_that_the_job_is_over(job):
    """Its end is the job's, so a job that was over before it came must not end as a failure."""
    served = job(TRAINKIT_SYNC_EVERY="4")
    ports = mxjob_ports(scheduler=1, server=2, worker=2)
    start_mxjob(served, ports, "server", "worker")
    served.pods["server-0"].wait_for("its scheduler has not come yet", 60)
    served.pods["server-1"].wait(30)
    start_mxjob(served, ports, "scheduler")
    served.end()


def test_torchruns_ranks_train_with_servers_that_were_started_by_hand(job):
    served = job(TRAINKIT_SYNC_EVERY="4")
    hosts = ",".join(served.cluster["ps"])
    served.start_as("ps-0", TRAINKIT_PS_HOSTS=hosts, TRAINKIT_PS_INDEX="0")
    environ = {**served.environ, "TRAINKIT_PS_HOSTS": hosts}
    with start_ranks(
        served.folder / "job.py", 2, env=environ, cwd=served.folder, preload=PRELOAD
    ) as ranks:
        ranks.wait()
    served.end()
    assert_equal(served.result(1), served.result(0), rtol=0, atol=0)


def test_a_job_without_servers_is_told_so_at_once(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    with start_ranks(tmp_path / "job.py", 1, env=[{}], cwd=tmp_path) as ranks:
        (result,) = ranks.wait(check=False)
    assert result.exit_code == 78
    assert "TRAINKIT_PS_HOSTS" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_does_not_come_is_named(job):
    served = job(servers=2, TRAINKIT_TIMEOUT="2")
    served.start("ps-0", "chief-0", TRAINKIT_TIMEOUT="2")
    served.end(chief_0=138, ps_0=138)
    assert f"ps 1 at {served.cluster['ps'][1]}" in served.output("chief-0")
    assert "no worker for 2 s" in served.output("ps-0")
    assert "Traceback" not in served.output("chief-0")


def test_a_worker_that_does_not_come_is_named(job):
    served = job(workers=2)
    served.start("ps-0", TRAINKIT_TIMEOUT="3")
    served.start("chief-0", "worker-1", TRAINKIT_TIMEOUT="4")
    served.end(chief_0=138, worker_1=138, ps_0=138)
    assert "missing: worker 1)" in served.output("chief-0")


def test_another_model_than_the_chiefs_is_refused(job):
    served = job(JOB_STEPS="5")
    served.start("ps-0", "chief-0")
    served.start("worker-0", JOB_NORM="1")
    refused = served.pods.pop("worker-0")
    assert refused.wait(60).exit_code == 78
    assert "another model than the chief" in refused.output()
    served.start("worker-0")
    served.end()


def changed(job, *pairs):
    """Have the pods of ``job`` run another program: of each pair the first gives way."""
    text = JOB
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (job.folder / "job.py").write_text(text)


def test_a_chief_whose_loop_leaves_for_a_notice_has_not_finished_the_job(job):
    """It returns from main, as a loop may that asks ctx.preempted: the job is to go on later."""
    served = job(TRAINKIT_SYNC_EVERY="2", JOB_STEPS="100000", JOB_PAUSE="0.1")
    loop = "for x, y, ids in loader:"
    changed(served, (loop, f"{loop}\n                if ctx.preempted: return"))
    served.start_all(TRAINKIT_CHECKPOINT_DIR=str(served.folder / "ckpt"))
    served.pods["chief-0"].wait_for("did step 8")
    served.pods["chief-0"].signal(signal.SIGTERM)
    served.end(chief_0=143, worker_0=143, ps_0=143)


def test_a_chief_that_waits_for_a_stuck_worker_saves_before_it_is_killed(job):
    served = job(TRAINKIT_SYNC_EVERY="4", JOB_STEPS="400", TRAINKIT_GRACE_PERIOD="8")
    stuck = "if ctx.rank == 1 and progress.step == 21: print('stuck', flush=True); time.sleep(100)"
    changed(served, ('if os.path.exists("slow"): time.sleep(PAUSE)', stuck))
    served.start_all(TRAINKIT_CHECKPOINT_DIR=str(served.folder / "ckpt"))
    served.pods["worker-0"].wait_for("stuck")
    served.pods["chief-0"].wait_for("did step 20")
    served.pods["chief-0"].signal(signal.SIGTERM)
    assert served.pods["chief-0"].wait(8).exit_code == 143
    assert "it is saved in" in served.output("chief-0")
    served.pods["worker-0"].kill()
    served.end(chief_0=143, worker_0=-signal.SIGKILL, ps_0=143)


def test_nobody_trains_alone_because_the_model_is_called_by_another_name(job):
    served = job(workers=0)
    changed(
        served,
        ("checkpoints.restore_latest()", "None"),
        ("(model(x), y)", "(net[2](net[0](x)), y)"),
    )
    served.start_all(TRAINKIT_TIMEOUT="3")
    served.end(chief_0=78, ps_0=138)
    assert "Call restore_latest() before the loop" in served.output("chief-0")


@pytest.mark.parametrize("evaluates", [True, False])
def test_nobody_trains_alone_by_an_optimizer_that_is_none_of_torchs(job, evaluates):
    served = job(workers=0, JOB_STEPS="5")
    by_hand = (
        "optimizer.zero_grad(); loss.backward()\n"
        "                with torch.no_grad():\n"
        "                    for p in model.parameters(): p -= 0.05 * p.grad"
    )
    changed(
        served,
        ("optimizer.zero_grad(); loss.backward(); optimizer.step()", by_hand),
        ("    right = 0\n", "    right = 0\n" if evaluates else "    return\n"),
    )
    served.start_all(TRAINKIT_TIMEOUT="3")
    served.end(chief_0=78, ps_0=138)
    assert "no optimizer of torch's has stepped" in served.output("chief-0")
