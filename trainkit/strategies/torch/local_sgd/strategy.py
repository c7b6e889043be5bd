"""What users choose as ``strategy="parameter_server"``, and how it fits into a plain loop."""

import logging
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainkit import config
from trainkit.coordination import StepAgreement
from trainkit.errors import PeerLostError, StrategyError, UsageError
from trainkit.strategies.base import Duty
from trainkit.strategies.torch.local_sgd.addresses import server_addresses
from trainkit.strategies.torch.local_sgd.agreement import StopAgreement
from trainkit.strategies.torch.local_sgd.communicator import WorkerCommunicator
from trainkit.strategies.torch.local_sgd.layout import FlatLayout
from trainkit.strategies.torch.local_sgd.observing import is_observed, observe_end
from trainkit.strategies.torch.local_sgd.serving import serve_shard
from trainkit.strategies.torch.local_sgd.shard import OuterOptions
from trainkit.strategies.torch.local_sgd.shared import SharedRun
from trainkit.strategies.torch.local_sgd.tensors import reduce_gathered, tensor_bytes
from trainkit.strategies.torch.local_sgd.worker import OuterWorker
from trainkit.strategies.torch.single import Single
from trainkit.topology import Role, Topology

__all__ = ["ParameterServer"]

log = logging.getLogger("trainkit")


class ParameterServer(Single):
    """Workers train by themselves for H steps; servers then average what they learnt.

    With the outer optimizer SGD with Nesterov momentum this is DiLoCo (arXiv 2311.08105); with
    ``outer_lr=1, outer_momentum=0`` it is averaging (local SGD), and with ``sync_every=1`` too and
    an SGD optimizer the same as data parallel training. Workers may come and go.
    """

    name = "parameter_server"
    hears_notices = True

    def __init__(
        self,
        *,
        precision: str | None = None,
        device: str = "auto",
        sync_every: int | None = None,
        outer_lr: float | None = None,
        outer_momentum: float | None = None,
        nesterov: bool = True,
        wire: str | None = None,
    ) -> None:
        """Prepare; what is not given is TRAINKIT_SYNC_EVERY, TRAINKIT_OUTER_LR and so on.

        Args:
            precision: as for ``Single``.
            device: as for ``Single``.
            sync_every: H, optimizer steps between two rounds with the servers.
            outer_lr: learning rate of the outer optimizer.
            outer_momentum: its momentum, from 0 to below 1.
            nesterov: whether that is Nesterov's.
            wire: numbers on the network: ``fp32``, or ``bf16`` for half the bytes.

        Raises:
            UsageError: a value out of range.
        """
        super().__init__(precision=precision, device=device)
        settings = config.settings()
        self._sync_every = settings.sync_every if sync_every is None else sync_every
        if self._sync_every < 1:
            raise UsageError(f"sync_every={self._sync_every}: expected 1 or more optimizer steps")
        self._options = OuterOptions(
            lr=settings.outer_lr if outer_lr is None else outer_lr,
            momentum=settings.outer_momentum if outer_momentum is None else outer_momentum,
            nesterov=nesterov,
            wire=settings.wire if wire is None else wire,
        )
        self._worker: OuterWorker | None = None
        self._shared: SharedRun | None = None
        self._agreement: StopAgreement | None = None
        self._modules: list[torch.nn.Module] = []
        self._layout: FlatLayout | None = None
        self._counted: weakref.ref[torch.optim.Optimizer] | None = None
        self._hooks: list[Any] = []
        self._roll: list[int] | None = None
        self._finished = False
        self._too_early = 0

    @classmethod
    def duty(cls, topology: Topology) -> Duty:
        """See ``Strategy.duty``: a ps serves."""
        return Duty.SERVE if topology.role is Role.PS else super().duty(topology)

    def serve(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.serve``: hold a part of the parameters until the job is over."""
        addresses = server_addresses(topology)
        index = topology.role_index
        if index is None:  # MXNet's scheduler, whose end is the job's
            observe_end(addresses, timeout)
            return
        if index >= len(addresses):
            raise StrategyError(
                f"this is parameter server {index}, and there are {len(addresses)} addresses of "
                f"them: {', '.join(f'{host}:{port}' for host, port in addresses)}"
            )
        observed = index == 0 and is_observed(topology)
        serve_shard(index, addresses, topology.world_size or 1, timeout, observed=observed)

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``: reach all servers."""
        if topology.rank is None or topology.world_size is None:
            raise StrategyError(
                f"strategy='parameter_server' needs a rank and a world size "
                f"({topology.summary()}): data is divided by them. Turn enableDynamicWorker off."
            )
        self._take_device(topology)
        self._worker = OuterWorker(
            server_addresses(topology),
            topology.rank,
            topology.world_size,
            self._options,
            sync_every=self._sync_every,
            timeout=timeout,
        )
        self._worker.connect(timeout)
        self.communicator = WorkerCommunicator(self._worker, timeout=timeout)
        self._shared = SharedRun(self._worker, self._attach)
        self._hooks.append(register_optimizer_step_post_hook(self._stepped))

    def stop_agreement(self, timeout: float) -> StepAgreement | None:
        """See ``Strategy.stop_agreement``: carried by the first server."""
        if self._worker is None:
            return None
        self._agreement = StopAgreement(self._worker, timeout=timeout)
        return self._agreement

    @property
    def shared(self) -> SharedRun | None:
        """See ``Strategy.shared``."""
        return self._shared

    def setup(self, model: Any, **options: Any) -> Any:
        """Move ``model`` to the device; it is not wrapped.

        Its parameters become the chief's at ``restore_latest``, or at its first forward pass.
        Batch norm's statistics are averaged at the end of a round.
        """
        model = super().setup(model, **options)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        if self._layout is not None:
            raise StrategyError(
                "ctx.setup() of another model after training began: the servers hold one vector "
                "of all parameters. Set up all models first."
            )
        self._modules.append(model)
        FlatLayout(self._modules)  # what it cannot hold is an error here and not later
        first: Callable[..., None] = self._first_forward
        if getattr(model, "_compiled_call_impl", None) is not None:
            first = torch.compiler.disable(first)  # it talks to servers: not to be compiled
        self._hooks.append(model.register_forward_pre_hook(first))
        return model

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``: over the workers that are there; meant for small values.

        Raises:
            PeerLostError: a worker went away since ``setup_dataloader(train=False)`` divided the
                data of an evaluation, so that its part would be missing.
        """
        worker = self._connected()
        if worker.world_size == 1:
            return value
        given = worker.gather(f"all_reduce({op})", tensor_bytes(value))
        self._require_roll(given)
        return reduce_gathered(value, list(given.values()), op)

    def evaluation_shard(self) -> tuple[int, int]:
        """See ``Strategy.evaluation_shard``: of those who are there; it ends the round."""
        worker = self._connected()
        if worker.world_size == 1:
            return 0, 1
        self._require_counted()
        if self._shared is not None:
            self._shared.synchronize()
        self._roll = sorted(worker.gather("evaluation", memoryview(b"")))
        return self._roll.index(worker.rank), len(self._roll)

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """See ``Strategy.no_sync``; backward passes are local in any case."""
        del model
        yield

    @property
    def native(self) -> OuterWorker | None:
        """The worker's side: ``synchronize()`` ends a round here, ``round`` counts them."""
        return self._worker

    def finish(self) -> None:
        """See ``Strategy.finish``: of the chief it is the end of the job."""
        self._require_counted()
        self._finished = True

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``: the chief's end is the job's, if it has finished."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        worker = self._worker
        if worker is None:
            return
        if self._agreement is not None:
            self._agreement.close()
        if failed:
            worker.hang_up()
            return
        worker.leave(stopping=not self._finished)

    # -- hooks ----------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Fix which tensors are trained; from now on no model comes to them."""
        if not self._modules:
            raise StrategyError(
                "strategy='parameter_server' has no model to train: call ctx.setup(model) before "
                "restore_latest() and before the first step"
            )
        if self._layout is None:
            self._layout = FlatLayout(self._modules)
            self._connected().attach(self._layout)

    def _first_forward(self, module: torch.nn.Module, inputs: Any) -> None:
        del inputs
        worker, shared = self._worker, self._shared
        if worker is None or shared is None or worker.begun or not module.training:
            return
        shared.begin()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After any optimizer's step: the one that stepped first is the one that counts."""
        worker, layout = self._worker, self._layout
        if worker is None:
            return
        if layout is None or not worker.begun:
            self._require_begun(optimizer)
            return
        counted = None if self._counted is None else self._counted()
        if counted is None:
            if not _trains(optimizer, layout.trained):
                return
            self._counted = weakref.ref(optimizer)
        elif counted is not optimizer:
            return
        if worker.step_done() and self._shared is not None:
            self._shared.synchronized()

    def _require_begun(self, optimizer: torch.optim.Optimizer) -> None:
        """Let nobody train alone in silence; one step may be for making the optimizer's state."""
        trained = {id(p) for module in self._modules for p in module.parameters()}
        self._too_early += _trains(optimizer, trained)
        if self._too_early > 1:
            raise StrategyError(
                "the optimizer stepped twice, and this worker has not taken the job's parameters: "
                "that happens at checkpoints.restore_latest(), or at the first call of the model "
                "that ctx.setup() returned in training mode. Call restore_latest() before the "
                "loop; a method of the model, or model.eval(), does not tell that training begins."
            )

    def _require_counted(self) -> None:
        """Let nobody train alone by an optimizer whose steps cannot be seen."""
        worker = self._worker
        if worker is not None and self._counted is None and worker.has_learnt():
            raise StrategyError(
                "parameters have changed, and no optimizer of torch's has stepped, so no round was "
                "ever exchanged and this worker has trained alone. Rounds are counted by the steps "
                "of a torch.optim.Optimizer: derive yours from it, and call its step()."
            )

    def _require_roll(self, given: dict[int, memoryview]) -> None:
        roll = self._roll
        gone = [] if roll is None else [rank for rank in roll if rank not in given]
        if gone:
            raise PeerLostError(
                f"worker {', '.join(map(str, gone))} went away during an evaluation that it had a "
                f"part of, so the result would be wrong. Started again, the evaluation is repeated."
            )

    def _connected(self) -> OuterWorker:
        if self._worker is None:
            raise AssertionError("not connected")  # a bug of ours
        return self._worker


def _trains(optimizer: torch.optim.Optimizer, trained: Collection[int]) -> bool:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return any(id(parameter) in trained for parameter in parameters)
