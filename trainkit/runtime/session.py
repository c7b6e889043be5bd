"""From a topology to a connected ``Context``, and back: the order of start and shutdown."""

import contextlib
import logging
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from trainkit import config
from trainkit.errors import DeadlineError, Preempted, TrainkitError, UsageError
from trainkit.frameworks import frameworks_named_by
from trainkit.lifecycle import RankMonitor
from trainkit.lifecycle.stacks import write_stacks_to
from trainkit.runtime.context import Context
from trainkit.strategies import Strategy, resolve
from trainkit.topology import Topology

if TYPE_CHECKING:
    from trainkit.checkpoint import CheckpointManager

__all__ = ["Session", "choose_strategy", "frameworks_of", "serve"]

log = logging.getLogger("trainkit")


def choose_strategy(
    strategy: str | Strategy,
    topology: Topology,
    *,
    precision: str | None,
    main: Callable[..., Any] | None = None,
) -> Strategy:
    """The strategy object for this job.

    Args:
        strategy: a name, ``auto``, or an object that is used as it is.
        topology: of this process.
        precision: handed to strategies of torch.
        main: the user's function, whose module counts where ``__main__`` names no framework:
            entry scripts are often thin.

    Raises:
        UsageError: ``precision`` together with what has none.
    """
    if isinstance(strategy, Strategy):
        if precision is not None:
            raise UsageError(
                f"precision={precision!r} together with a strategy object: give it to "
                f"{type(strategy).__name__}(precision={precision!r})"
            )
        return strategy
    frameworks = frameworks_of(main)
    found = resolve(strategy, frameworks, topology)
    if found.framework == "torch":
        options: dict[str, Any] = {"precision": precision}
        return found(**options)
    if precision is not None:
        raise UsageError(
            f"precision={precision!r} needs torch, and strategy {found.name!r} has no tensors. "
            f'If main uses torch, say strategy="torch:auto".'
        )
    return found()


def frameworks_of(main: Callable[..., Any] | None) -> list[str]:
    """Frameworks that the main module names; where it names none, those of ``main``'s module."""
    main_module = sys.modules.get("__main__")
    named = frameworks_named_by(vars(main_module)) if main_module is not None else []
    while isinstance(main, partial):
        main = main.func
    return named or frameworks_named_by(getattr(main, "__globals__", {}))


def serve(strategy: Strategy, topology: Topology, settings: config.Settings) -> None:
    """Serve until the job is over; a notice ends it at once, since nothing is to be saved.

    It is not watched for a heartbeat: that it does nothing is how a server waits.
    """
    if strategy.hears_notices:
        strategy.serve(topology, settings.timeout)
        return
    monitor = RankMonitor(
        signals=settings.preemption_signals, grace_period=settings.grace_period, heartbeat_file=None
    )
    monitor.start()
    try:
        strategy.serve(topology, settings.timeout)
    finally:
        monitor.close()


class Session:
    """Everything of one rank that has to be closed again, in the right order."""

    def __init__(self, strategy: Strategy, topology: Topology, settings: config.Settings) -> None:
        self._strategy = strategy
        self._topology = topology
        self._settings = settings
        self._monitor: RankMonitor | None = None
        self._context: Context | None = None

    def open(self, *, checkpoint_dir: str | None, seed: int | None) -> Context:
        """Meet the other ranks and return the context.

        Args:
            checkpoint_dir: default folder of checkpoints.
            seed: of the order of data and, where given, of all random generators; rank *r*
                gets ``seed + r``, so that dropout differs over ranks.
        """
        # First of all, so that a notice is heard while this rank waits for others; as PID 1 a
        # process without a handler would not even be ended by SIGTERM.
        self._monitor = RankMonitor(
            signals=self._settings.preemption_signals,
            grace_period=self._settings.grace_period,
            heartbeat_file=self._settings.heartbeat_file,
        )
        if self._settings.stacks_file is not None:
            write_stacks_to(self._settings.stacks_file)
        self._monitor.start()
        self._strategy.connect(self._topology, self._settings.timeout)
        self._agree_to_stop(self._monitor)
        if seed is not None:
            _seed_everything(self._strategy, seed + self._strategy.communicator.rank)
        self._context = Context(
            self._topology,
            self._strategy,
            self._monitor,
            checkpoint_dir=checkpoint_dir or self._settings.checkpoint_dir,
            local_tier=self._settings.local_tier,
            seed=seed or 0,
        )
        return self._context

    @property
    def monitor(self) -> RankMonitor | None:
        """The rank's monitor, once ``open`` has made it."""
        return self._monitor

    def finish(self) -> None:
        """After ``main`` returned: save what is unsaved.

        Raises:
            Preempted: ``main`` was told of a notice and left for it, so it may not be done.
        """
        self._with_managers(_save_unsaved)
        self._warn_of_no_step()
        if self._monitor is not None and self._monitor.told and self._monitor.stopped_at is None:
            raise Preempted("main returned after a notice to stop; what was unsaved is saved")
        self._strategy.finish()

    def end(self) -> None:
        """After the block of ``init``: nothing is saved, and the job is done unless it was told
        to stop."""
        if self._monitor is None or not self._monitor.told:
            self._strategy.finish()

    def _warn_of_no_step(self) -> None:
        """Say so where there was something to train and nothing was: the job is green."""
        context, monitor = self._context, self._monitor
        if context is None or monitor is None or context.rank != 0 or not context.managers:
            return
        restored_or_saved = any(m.last_saved_step is not None for m in context.managers)
        if monitor.last_step is None and not restored_or_saved:
            log.warning(
                "ended after 0 steps: main returned, checkpoints.step was never called, and "
                "nothing was restored. If this was to train, it has not: is there data, and are "
                "there the GPUs that it looks for?"
            )

    def finish_stopped(self) -> None:
        """After all ranks stopped together: save with the managers that were not asked yet."""
        step = self._monitor.stopped_at if self._monitor is not None else None
        if step is not None:
            self._with_managers(lambda manager: manager.save_for_stop(step))
        else:
            self._with_managers(lambda manager: manager.wait())

    def _with_managers(self, action: "Callable[[CheckpointManager], object]") -> None:
        """Do it with each, whatever comes of the others, and raise the first failure then."""
        failure: BaseException | None = None
        for manager in self._context.managers if self._context is not None else ():
            try:
                action(manager)
            except DeadlineError:  # of this rank alone: no other manager is to wait for it
                raise
            except (Exception, TrainkitError) as error:  # the same on all ranks
                failure = failure or error
        if failure is not None:
            raise failure

    def diagnose(self, error: BaseException) -> BaseException:
        """What to report in place of ``error``: the strategy may know more of a lost peer."""
        return error if self._context is None else self._strategy.diagnose(error)

    @property
    def teardown_is_safe(self) -> bool:
        """Whether this process may end by the interpreter's own teardown."""
        return self._strategy.teardown_is_safe

    def close(self, *, failed: bool) -> None:
        """Leave in order; after a failure without waiting for anybody."""
        context, monitor = self._context, self._monitor
        with contextlib.ExitStack() as stack:
            stack.callback(self._strategy.close, failed=failed)
            if monitor is not None:
                stack.callback(monitor.close)
            if context is not None:
                stack.callback(context.close_console)
                for manager in context.managers:
                    stack.callback(manager.close, failed=failed)

    def _agree_to_stop(self, monitor: RankMonitor) -> None:
        # Whoever does not answer within the grace period will not be answered for any more.
        agreement = self._strategy.stop_agreement(
            min(self._settings.timeout, self._settings.grace_period)
        )
        if agreement is not None:
            monitor.agree_with(agreement)


def _save_unsaved(manager: "CheckpointManager") -> None:
    manager.save_unsaved()
    manager.wait()


def _seed_everything(strategy: Strategy, seed: int) -> None:
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    strategy.seed(seed)
