"""From a strategy's name to its class, importing a framework only when it is used."""

from importlib import import_module
from importlib.util import find_spec

from trainkit.errors import DependencyError, StrategyError, UsageError
from trainkit.frameworks import FRAMEWORKS
from trainkit.strategies.base import Strategy
from trainkit.topology import Role, Topology

__all__ = ["resolve", "strategies"]

_HOMES: dict[tuple[str, str], str] = {
    ("plain", "mpi"): "trainkit.strategies.mpi.plain:PlainMpi",
    ("plain", "plain"): "trainkit.strategies.plain:Plain",
    ("tensorflow", "multi_worker"): "trainkit.strategies.tensorflow.multi_worker:MultiWorker",
    ("tensorflow", "parameter_server"): (
        "trainkit.strategies.tensorflow.parameter_server:ParameterServer"
    ),
    ("tensorflow", "single"): "trainkit.strategies.tensorflow.single:Single",
    ("torch", "ddp"): "trainkit.strategies.torch.ddp:DDP",
    ("torch", "parameter_server"): "trainkit.strategies.torch.local_sgd.strategy:ParameterServer",
    ("torch", "mpi"): "trainkit.strategies.torch.mpi:Mpi",
    ("torch", "fsdp"): "trainkit.strategies.torch.fsdp:FSDP",
    ("torch", "single"): "trainkit.strategies.torch.single:Single",
    ("xgboost", "collective"): "trainkit.strategies.xgboost.collective:Collective",
}


def strategies() -> list[tuple[str, str]]:
    """(framework, name) of every strategy there is."""
    return sorted(_HOMES)


def resolve(name: str, frameworks: list[str], topology: Topology) -> type[Strategy]:
    """The class of the strategy called ``name``.

    Args:
        name: as the user wrote it: ``auto``, ``ddp``, or ``torch:ddp`` where a bare name
            would be ambiguous.
        frameworks: that the main module names.
        topology: of the job; ``auto`` goes by its size and its roles.

    Raises:
        UsageError: no such strategy, or several frameworks and no choice between them.
        StrategyError: the framework has no strategy yet.
        DependencyError: the framework is not installed.
    """
    framework, _, bare = name.rpartition(":")
    if bare == "auto":
        framework = framework or _only(frameworks)
        bare = _usual(framework, topology)
    matches = [k for k in _HOMES if k[1] == bare and framework in ("", k[0])]
    if len(matches) > 1:
        matches = [key for key in matches if key[0] in frameworks] or matches
    if not matches:
        raise _unknown(name, framework)
    framework = matches[0][0]
    if framework != "plain" and find_spec(framework) is None:
        raise DependencyError(
            f"strategy {name!r} needs {framework}, which is not installed. Install "
            f'"trainkit[{framework}]", or {framework} in the build that fits your GPUs.'
        )
    module, _, attribute = _HOMES[matches[0]].partition(":")
    found: type[Strategy] = getattr(import_module(module), attribute)
    return found


def _usual(framework: str, topology: Topology) -> str:
    """What ``auto`` means."""
    if framework == "xgboost":
        return "collective"
    served = bool((topology.cluster or {}).get("ps")) and topology.role is not Role.EVALUATOR
    if framework == "tensorflow" and served:
        return "parameter_server"
    if framework in ("torch", "tensorflow") and topology.world_size == 1:
        return "single"
    return {"torch": "ddp", "tensorflow": "multi_worker"}.get(framework, framework)


def _only(frameworks: list[str]) -> str:
    if len(frameworks) > 1:
        raise UsageError(
            f"the main module uses {' and '.join(frameworks)}: say which of them trains, with "
            f'strategy="torch:auto", say.'
        )
    return frameworks[0] if frameworks else "plain"


def _unknown(name: str, framework: str) -> UsageError | StrategyError:
    known = ", ".join(f"{a}:{b}" for a, b in strategies())
    if framework in FRAMEWORKS and not any(key[0] == framework for key in _HOMES):
        return StrategyError(
            f"there is no strategy for {framework} yet (strategy={name!r}). Known: {known}."
        )
    return UsageError(f"strategy={name!r} is not known. Known: auto, {known}.")
