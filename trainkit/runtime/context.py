"""What the user's ``main`` is given: who we are, and what to do together."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from trainkit.errors import StrategyError, UsageError
from trainkit.lifecycle import RankMonitor
from trainkit.runtime.console import Console
from trainkit.strategies.base import Strategy
from trainkit.topology import Role, Topology

if TYPE_CHECKING:
    from trainkit.checkpoint import CheckpointManager

__all__ = ["Context"]

T = TypeVar("T")


class Context:
    """One rank's view of the job. Made by ``trainkit.run`` and ``trainkit.init``."""

    def __init__(
        self,
        topology: Topology,
        strategy: Strategy,
        monitor: RankMonitor,
        *,
        checkpoint_dir: str | None,
        local_tier: str | None = None,
        seed: int,
    ) -> None:
        self._topology = topology
        self._strategy = strategy
        self._monitor = monitor
        self._checkpoint_dir = checkpoint_dir
        self._local_tier = local_tier
        self._seed = seed
        self._console = Console(enabled=self.rank == 0)
        self._quiet_from = self._quiet_until = 0
        self._most_workers = 0
        self.managers: list[CheckpointManager] = []
        """Checkpoint managers made here; ``run`` saves with them at the end, and closes them."""

    @property
    def topology(self) -> Topology:
        """Where this process stands in the job."""
        return self._topology

    @property
    def rank(self) -> int:
        """Rank of this process in the job."""
        return self._strategy.communicator.rank

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self._strategy.communicator.world_size

    @property
    def device(self) -> Any:
        """The framework's device of this rank, such as ``torch.device("cuda", 0)``."""
        return self._strategy.device

    @property
    def native(self) -> Any:
        """The framework's own object behind the strategy (torch's process group, say)."""
        return self._strategy.native

    @property
    def preempted(self) -> bool:
        """Whether the job was asked to stop; for leaving an evaluation loop, say.

        True on every rank soon after one rank heard of it, not at the same moment.
        ``checkpoints.step`` is where all ranks stop together.
        """
        return self._monitor.preempted

    @property
    def training_over(self) -> bool:
        """In an evaluator of a TFJob: whether the chief has said that the job is done."""
        return self._strategy.training_over

    def setup(
        self,
        model: T,
        *,
        blocks: Sequence[type | str] | None = None,
        activation_checkpointing: bool = False,
    ) -> T:
        """Place ``model`` on this rank's device and make it train with the other ranks'.

        Make the optimizer after it: ``fsdp`` replaces the parameters.

        Args:
            model: of the strategy's framework.
            blocks: classes of modules, or their names, that are the model's repeated parts
                (``[Block]``): what ``fsdp`` gathers, and activation checkpointing computes
                again, one at a time. By default the repeated modules of lists.
            activation_checkpointing: compute a block's activations again in the backward
                pass, and keep its inputs alone.

        Returns:
            The model to call: wrapped by the strategy where there are several ranks.

        Raises:
            StrategyError: the strategy has no models, cannot take this one, or has no such
                options.
        """
        options: dict[str, Any] = {}
        if blocks is not None:
            options["blocks"] = blocks
        if activation_checkpointing:
            options["activation_checkpointing"] = True
        unknown = sorted(options.keys() - self._strategy.setup_options)
        if unknown:
            raise StrategyError(
                f"ctx.setup({unknown[0]}=…): strategy {self._strategy.name!r} has no such option; "
                f"torch's single, ddp and fsdp have it."
            )
        prepared: T = self._strategy.setup(model, **options)
        return prepared

    def setup_dataloader(self, loader: Any, *, train: bool | None = None) -> Any:
        """Give each rank its part of ``loader``'s data, on this rank's device.

        Args:
            loader: a ``torch.utils.data.DataLoader``, or a ``tf.data.Dataset`` of batches (or a
                function of an InputContext that returns one); its batch size is per rank, of
                TensorFlow per device.
            train: True shuffles where the loader did, and drops what does not divide over
                the ranks; False neither pads nor drops. By default as the loader looks.

        Raises:
            StrategyError: the strategy has no loaders.
        """
        if self._strategy.framework != "torch":
            return self._strategy.loader(loader, train=train is not False)
        from trainkit.data.torch import ShardedDataLoader
        from trainkit.data.torch.workers import warn_of_too_many

        workers = getattr(loader, "num_workers", 0)
        if workers > self._most_workers and not self._topology.local_rank:
            self._most_workers = workers  # the loader for evaluation need not say it again
            warn_of_too_many(workers, self._topology.local_world_size or 1)
        strategy = self._strategy

        def sharded(shard: tuple[int, int]) -> ShardedDataLoader:
            return ShardedDataLoader(
                loader, shard=shard, seed=self._seed, device=strategy.device, train=train
            )

        if train is False:
            return sharded(strategy.evaluation_shard())
        found = sharded(strategy.data_shard)
        if found.train:
            return found
        shard = strategy.evaluation_shard()
        return found if shard == strategy.data_shard else sharded(shard)

    def shard(self, items: Sequence[T] | Iterable[T]) -> list[T]:
        """This rank's part of ``items``: every item goes to exactly one rank."""
        index, count = self._strategy.data_shard
        return list(items)[index::count]

    def no_sync(self, model: Any, *, when: bool = True) -> AbstractContextManager[None]:
        """While open, backward passes only accumulate gradients, without an all-reduce.

        Args:
            model: as ``setup`` returned it.
            when: False makes it do nothing, for ``when=not last_micro_batch``.
        """
        from contextlib import nullcontext

        return self._strategy.no_sync(model) if when else nullcontext()

    def checkpoints(
        self,
        url: str | None = None,
        /,
        *,
        save: Any = None,
        keep: Any = 3,
        local_tier: str | None = None,
        options: Any = None,
        **state: Any,
    ) -> "CheckpointManager":
        """Save and restore ``state`` together, for all ranks.

        Args:
            url: folder of the checkpoints; ``run(checkpoint_dir=…)`` or
                TRAINKIT_CHECKPOINT_DIR by default. With none of them nothing is saved.
            save: when ``step`` saves: a number of steps, or a ``SavePolicy``; every ten
                minutes by default.
            keep: number of newest checkpoints to keep, or a ``RetentionPolicy``.
            local_tier: folder on each node that saves reach before; TRAINKIT_LOCAL_TIER by
                default, else none.
            options: ``CheckpointOptions``: numbers that seldom need a change. An evaluator only
                reads unless they say otherwise.
            state: by name, anything with ``state_dict`` and ``load_state_dict``.
        """
        from trainkit.checkpoint import CheckpointManager, CheckpointOptions, EverySteps

        if options is None and self._topology.role is Role.EVALUATOR:
            options = CheckpointOptions(read_only=True)  # the folder belongs to those that train
        url = url or self._checkpoint_dir
        policy = EverySteps(save) if isinstance(save, int) else save
        shared = self._strategy.shared
        manager: CheckpointManager
        if shared is not None:
            from trainkit.runtime.served import ServedCheckpoints

            manager = ServedCheckpoints(
                url,
                state,
                shared,
                save=policy,
                keep=keep,
                monitor=self._monitor,
                local_tier=local_tier or self._local_tier,
                options=options,
            )
        else:
            manager = CheckpointManager(
                url,
                state,
                save=policy,
                keep=keep,
                communicator=self._strategy.communicator,
                monitor=self._monitor,
                local_tier=local_tier or self._local_tier,
                options=options,
            )
        self.managers.append(manager)
        return manager

    def save_callback(
        self, checkpoints: "CheckpointManager", *, log: Any = None, entry: str | None = None
    ) -> Any:
        """The callback that saves while the framework has the loop: for ``xgboost.train``.

        It calls ``checkpoints.step`` after each round, so that all ranks save, and stop, after
        the same one; its ``model`` and ``rounds_left`` let a run that is started again go on.

        Args:
            checkpoints: as ``checkpoints(...)`` returned it, with a booster in its state.
            log: an entry of the state, to be filled with the scores of all rounds.
            entry: name of the booster in the state, where there are several.

        Returns:
            ``trainkit.checkpoint.xgboost.SaveCheckpoints``: the last of ``callbacks=``.

        Raises:
            StrategyError: the framework leaves its loop to the script.
        """
        if self._strategy.framework != "xgboost":
            raise StrategyError(
                f"ctx.save_callback() is for xgboost.train, which has the loop itself; under "
                f"strategy {self._strategy.name!r} call checkpoints.step(step) after each step."
            )
        from trainkit.checkpoint.xgboost import SaveCheckpoints

        return SaveCheckpoints(checkpoints, log=log, entry=entry)

    def clip_grad_norm(self, model: Any, max_norm: float) -> Any:
        """Scale gradients so that their L2 norm, over the parts of all ranks, is limited.

        Between ``backward`` and the optimizer's step; every rank has to call.

        Args:
            model: as ``setup`` returned it.
            max_norm: above 0; ``math.inf`` only measures.

        Returns:
            The norm before, a tensor of no dimension on the device, the same on all ranks.

        Raises:
            StrategyError: the strategy has no gradients of torch.
            UsageError: ``max_norm`` is not above 0.
        """
        if not max_norm > 0:
            raise UsageError(f"clip_grad_norm(max_norm={max_norm}): expected a number above 0")
        return self._strategy.clip_grad_norm(model, max_norm)

    def log(self, step: int, *, steps: int | None = None, **values: Any) -> None:
        """Tell people how it goes; costs nothing while no line is due.

        Args:
            step: optimizer steps done.
            steps: of the whole run, for a percentage and the time left.
            values: numbers or one-element tensors by name; read only when shown.
        """
        # Every operation counts here: a step of torch leaves little of Python in the caches.
        if self._quiet_from <= step < self._quiet_until and (steps is None or step != steps):
            return
        self._quiet_from = step
        self._quiet_until = step + self._console.log(step, steps, values)

    def all_reduce(self, value: Any, op: str = "mean") -> Any:
        """Combine a tensor or a number over all ranks.

        Args:
            value: the same shape on every rank; not changed.
            op: ``mean``, ``sum``, ``min`` or ``max``.
        """
        if op not in ("mean", "sum", "min", "max"):
            raise StrategyError(f"all_reduce(op={op!r}): expected mean, sum, min or max")
        return self._strategy.all_reduce(value, op)

    def barrier(self, name: str = "barrier", *, timeout: float | None = None) -> None:
        """Wait until every rank is here.

        Raises:
            DeadlineError: some ranks did not come within ``timeout`` seconds; names them.
        """
        self._strategy.communicator.barrier(name, timeout=timeout)

    def broadcast_object(self, value: Any, *, src: int = 0) -> Any:
        """Give the object of rank ``src`` to all ranks."""
        return self._strategy.communicator.broadcast_object(value, src=src)

    def close_console(self) -> None:
        """Leave the terminal as it was; called by ``run`` and ``init``."""
        self._console.close()
