import pytest

from trainkit.errors import StrategyError, UsageError
from trainkit.strategies import Duty, resolve, strategies
from trainkit.topology import Role, Topology

pytest.importorskip("torch")


def test_auto_takes_the_framework_of_the_main_module_and_the_world():
    assert resolve("auto", ["torch"], 1).name == "single"
    assert resolve("auto", ["torch"], 4).name == "ddp"
    assert resolve("auto", [], 4).name == "plain"


def test_a_name_may_carry_its_framework():
    assert resolve("torch:ddp", [], 1) is resolve("ddp", ["torch"], 1)


@pytest.mark.parametrize("name", ["dpp", "torch:dpp", "auto:torch"])
def test_an_unknown_name_is_an_error_that_lists_the_known(name):
    with pytest.raises(UsageError, match=r"not known.*torch:ddp"):
        resolve(name, ["torch"], 1)


def test_two_frameworks_need_a_choice():
    with pytest.raises(UsageError, match="tensorflow and torch"):
        resolve("auto", ["tensorflow", "torch"], 1)


def test_a_framework_without_strategies_is_said():
    with pytest.raises(StrategyError, match="no strategy for tensorflow yet"):
        resolve("auto", ["tensorflow"], 2)


def test_every_registered_strategy_imports_under_its_name():
    for framework, name in strategies():
        found = resolve(f"{framework}:{name}", [], 2)
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
    assert resolve("ddp", ["torch"], 2).duty(Topology(platform="tfjob", role=role)) is duty
