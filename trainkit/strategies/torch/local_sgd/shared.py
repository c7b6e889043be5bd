"""What checkpoints have to do with servers: who saves, and what goes along with a round."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainkit.errors import UsageError
from trainkit.state import PerRank, Stateful
from trainkit.strategies.torch.local_sgd.worker import OuterWorker

__all__ = ["OuterState", "SharedRun"]

log = logging.getLogger(__name__)


class OuterState:
    """The entry of the checkpoint that holds the outer optimizer's momentum, and the round."""

    def __init__(self, worker: OuterWorker) -> None:
        self._worker = worker
        self.restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """As of the start of the round."""
        return {"round": self._worker.round, "momentum": self._worker.momentum}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep it until the chief brings it to the servers."""
        self.restored = dict(state_dict)


class SharedRun:
    """A run whose parameters are on servers, for whoever saves and restores it.

    The chief saves, at the end of a round. What the others need besides parameters to come in at
    the right place (the position in the data, the step, a schedule's state) goes along with each
    round, so that a worker which was started again is where the others are.
    """

    def __init__(self, worker: OuterWorker, attach: Callable[[], None]) -> None:
        """Stand for ``worker``; ``attach`` fixes which tensors are trained."""
        self._worker = worker
        self._attach = attach
        self._carried: dict[str, Any] = {}
        self._untold = False
        self._step = 0
        self._passed_over: set[str] = set()
        self.outer = OuterState(worker)

    @property
    def saves(self) -> bool:
        """Whether this worker is the one that saves."""
        return self._worker.is_chief

    @property
    def begun(self) -> bool:
        """Whether this worker has taken parameters from the servers."""
        return self._worker.begun

    @property
    def in_step(self) -> bool:
        """Whether the model is as the servers have it: no step since the round began."""
        return self._worker.begun and self._worker.local_steps == 0

    def carry(self, state: Mapping[str, Any]) -> None:
        """Let entries of a checkpoint go along with each round, but for models.

        Of optimizers only what is set, not what was learnt: most schedules change the learning
        rate that the optimizer has, so who comes in later needs it.
        """
        for name, value in state.items():
            if isinstance(value, torch.nn.Module | PerRank):
                continue
            if isinstance(value, torch.optim.Optimizer):
                self._carried[name] = _Hyperparameters(value)
            elif isinstance(value, Stateful):
                self._carried[name] = value

    def begin(self, restore: Callable[[], int | None] | None = None) -> int | None:
        """Take the parameters of the job, or as the chief of a new one bring them.

        Args:
            restore: restores what was saved, and returns its step.

        Returns:
            The step at which the job is; None where it begins.

        Raises:
            UsageError: training has begun before.
        """
        worker = self._worker
        if worker.begun:
            raise UsageError(
                "restore_latest() after the first forward pass: the parameters were taken from "
                "the servers then. Restore before training begins."
            )
        self._attach()
        step = restore() if restore is not None else None
        if worker.is_chief and not worker.is_running():
            restored = self.outer.restored
            position = self._position(step or 0)
            worker.bring(restored.get("round", 0), restored.get("momentum", {}), position)
        position = worker.join()
        if not position:
            return step
        self._take(position)
        self._step = position["step"]
        return self._step or None

    def synchronized(self) -> None:
        """A round has ended; the next ``stepped`` says where in the data that is."""
        self._untold = True

    def stepped(self, step: int) -> None:
        """After each step, once the loop has counted it."""
        self._step = step
        if self._untold:
            self._untold = False
            self._worker.tell_position(self._position(step))

    def synchronize(self) -> None:
        """End the round here, so that what is saved or tested is what the servers have."""
        if self._worker.begun and self._worker.local_steps:
            self._worker.synchronize()
            self._worker.tell_position(self._position(self._step))

    def _position(self, step: int) -> dict[str, Any]:
        states = {}
        for name, value in self._carried.items():
            state = value.state_dict()
            if _is_plain(state):
                states[name] = state
            elif name not in self._passed_over:
                self._passed_over.add(name)
                log.warning(
                    "%s: its state is not of plain values, so a worker that comes in later begins "
                    "with a new one",
                    name,
                )
        return {"step": step, "state": states}

    def _take(self, position: Mapping[str, Any]) -> None:
        for name, state in position["state"].items():
            if name in self._carried:
                self._carried[name].load_state_dict(state)


class _Hyperparameters:
    """The numbers of an optimizer's parameter groups: learning rate, momentum, betas and so on."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        groups = []
        for group in self._optimizer.param_groups:
            numbers = {name: _number(value) for name, value in group.items() if name != "params"}
            groups.append({name: n for name, n in numbers.items() if n is not None})
        return {"groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        groups = self._optimizer.param_groups
        if len(groups) != len(state_dict["groups"]):
            log.warning(
                "the optimizer here has %d parameter groups and the others' has %d: its learning "
                "rate and the like stay as they are",
                len(groups),
                len(state_dict["groups"]),
            )
            return
        for group, numbers in zip(groups, state_dict["groups"], strict=True):
            for name, number in numbers.items():
                if isinstance(group.get(name), torch.Tensor):
                    group[name].fill_(number)
                else:
                    group[name] = tuple(number) if isinstance(number, list) else number


def _number(value: Any) -> Any:
    """A number, or a list of them, that JSON can hold; None for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, tuple) and all(isinstance(part, int | float) for part in value):
        return list(value)
    return value if isinstance(value, int | float) else None


def _is_plain(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
