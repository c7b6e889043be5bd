import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from trainkit.errors import StrategyError, UsageError
from trainkit.strategies import Duty, registry, resolve, strategies
from trainkit.topology import Role, Topology

pytest.importorskip("torch")


def ranks(count):
    return Topology(platform="env", rank=0, world_size=count)


def test_auto_takes_the_framework_of_the_main_module_and_the_world():
    assert resolve("auto", ["torch"], ranks(1)).name == "single"
    assert resolve("auto", ["torch"], ranks(4)).name == "ddp"
    assert resolve("auto", [], ranks(4)).name == "plain"


def test_a_name_may_carry_its_framework():
    assert resolve("torch:ddp", [], ranks(1)) is resolve("ddp", ["torch"], ranks(1))


@pytest.mark.parametrize("name", ["dpp", "torch:dpp", "auto:torch"])
def test_an_unknown_name_is_an_error_that_lists_the_known(name):
    with pytest.raises(UsageError, match=r"not known.*torch:ddp"):
        resolve(name, ["torch"], ranks(1))


def test_two_frameworks_need_a_choice():
    with pytest.raises(UsageError, match="tensorflow and torch"):
        resolve("auto", ["tensorflow", "torch"], ranks(1))


WITH_PS = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}


@pytest.mark.parametrize(
    ("framework", "size", "cluster", "name"),
    [
        ("xgboost", 1, None, "collective"),
        ("torch", 3, WITH_PS, "ddp"),
    ],
)
def test_auto_goes_by_the_roles_of_the_job(framework, size, cluster, name):
    topology = replace(ranks(size), cluster=cluster)
    if (framework, name) not in strategies():
        with pytest.raises(StrategyError, match="no strategy for"):
            resolve("auto", [framework], topology)
    else:
        assert resolve("auto", [framework], topology).name == name


IN_ITS_OWN_PROCESS = """
import sys
from trainkit.strategies import resolve, strategies
from trainkit.topology import Role, Topology

def auto(size, role=Role.WORKER, **cluster):
    topology = Topology(platform="env", role=role, rank=0, world_size=size, cluster=cluster or None)
    return resolve("auto", ["tensorflow"], topology).name

print(auto(3, chief=["a:1"], worker=["b:1", "c:1"], ps=["d:1"]))
print(auto(1, chief=["a:1"], ps=["d:1"]))
print(auto(2, worker=["b:1", "c:1"]))
print(auto(1))
print(auto(1, role=Role.EVALUATOR, chief=["a:1"], ps=["d:1"]))
for framework, name in strategies():
    if framework == "tensorflow":
        found = resolve(f"{framework}:{name}", [], Topology(platform="env"))
        assert (found.framework, found.name) == (framework, name)
assert "torch" not in sys.modules
"""


def test_auto_of_tensorflow_goes_by_parameter_servers_and_size():
    """Apart, since TensorFlow's threads and variables would stay with all other tests."""
    if find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]")
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names = ["parameter_server", "parameter_server", "multi_worker", "single", "single"]
    assert done.stdout.split() == names


def test_a_framework_without_strategies_is_said(monkeypatch):
    monkeypatch.setattr(registry, "_HOMES", {("torch", "ddp"): "trainkit.strategies.torch.ddp:DDP"})
    with pytest.raises(StrategyError, match="no strategy for tensorflow yet"):
        resolve("auto", ["tensorflow"], ranks(2))


def test_every_registered_strategy_imports_under_its_name():
    for framework, name in strategies():
        if framework == "tensorflow":  # in the test above
            continue
        found = resolve(f"{framework}:{name}", [], ranks(2))
        assert (found.framework, found.name) == (framework, name)


@pytest.mark.parametrize(
    ("role", "duty"),
    [
        (Role.CHIEF, Duty.TRAIN),
        (Role.WORKER, Duty.TRAIN),
        (Role.PS, Duty.IDLE),
        (Role.EVALUATOR, Duty.EVALUATE),
    ],
)
def test_who_does_what_under_ddp(role, duty):
    assert resolve("ddp", ["torch"], ranks(2)).duty(Topology(platform="tfjob", role=role)) is duty
