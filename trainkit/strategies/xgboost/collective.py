"""Data parallel trees: every rank holds its part of the rows, histograms are summed over ranks."""

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
from xgboost import collective
from xgboost.core import XGBoostError

from trainkit import config
from trainkit.coordination import Communicator, Store
from trainkit.errors import StrategyError
from trainkit.strategies.base import Strategy
from trainkit.strategies.link import RankLink
from trainkit.strategies.xgboost.device import choose_device
from trainkit.strategies.xgboost.group import Group, address_for_all
from trainkit.strategies.xgboost.losses import (
    end_at_once,
    explain,
    is_loss,
    missing_ranks,
    store_answers,
)
from trainkit.strategies.xgboost.stuck import StuckWatch
from trainkit.strategies.xgboost.threads import ThreadGuard, require_connected
from trainkit.topology import Topology

__all__ = ["Collective", "Threads"]

_OPS = {
    "sum": collective.Op.SUM,
    "mean": collective.Op.SUM,
    "min": collective.Op.MIN,
    "max": collective.Op.MAX,
}


class Collective(Strategy):
    """XGBoost's own collective (formerly Rabit), with its tracker on rank 0.

    The environment alone would not do: XGBoost reads no DMLC_* variable, and every rank that
    calls it without a communicator trains alone. At world size 1 there is none, and no cost.
    """

    framework = "xgboost"
    name = "collective"

    def __init__(self, *, device: str = "auto") -> None:
        """Prepare.

        Args:
            device: ``cpu`` or ``cuda``; ``auto`` leaves it to TRAINKIT_DEVICE, and to what
                there is.
        """
        self._request = device
        self._device = "cpu"
        self._link: RankLink | None = None
        self._group: Group | None = None
        self._watch = StuckWatch()
        self._guard = ThreadGuard(self._watch)
        self._threads: Threads | None = None
        self._left = False
        self._teardown_is_safe = True

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``: the ranks meet first, so that the missing ones are named."""
        request = config.settings().device if self._request == "auto" else self._request
        self._device = choose_device(
            topology.local_rank or 0,
            topology.local_world_size or 1,
            world_size=topology.world_size or 1,
            request=request,
        )
        if topology.world_size == 1:
            self.communicator = Communicator.solo()
            return
        self._link = RankLink.open(topology, timeout)
        self.communicator = self._link.communicator
        address = address_for_all(self.communicator, topology)
        self._threads = Threads(self._link, self._guard, address, timeout)
        try:
            with self._watch.connecting():
                self._group = Group.open(self.communicator, address, timeout)
        except XGBoostError as error:
            raise self._explain(error, timeout) from None
        self._watch_losses(self._link, timeout)
        self._guard.install()

    def _watch_losses(self, link: RankLink, timeout: float) -> None:
        """End this rank where XGBoost does not notice that another one has gone."""
        place = self.communicator
        store = link.second_connection("control")  # a thread's own, of the same keys
        own = Communicator(store, place.rank, place.world_size, timeout=timeout)

        missing: list[int] = []

        def call_the_roll() -> None:
            # At once, before ranks that have noticed take the store with them.
            missing.extend(missing_ranks(own, lambda _: None))

        def end() -> None:
            error = XGBoostError("its connections have ended, and it waits for them")
            end_at_once(explain(error, missing, own, timeout), place.rank)

        self._watch.start(call_the_roll, end)

    def watch_store(self) -> Store:
        """See ``Strategy.watch_store``."""
        if self._link is None:
            return super().watch_store()
        return self._link.second_connection("watch")

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: what to give XGBoost as its parameter ``device``."""
        return self._device

    @property
    def native(self) -> "Threads | None":
        """How other threads than ``main``'s train with the other ranks; None for one rank."""
        return self._threads

    def setup(self, model: Any) -> Any:
        """There is nothing to place: XGBoost makes its boosters itself."""
        raise StrategyError(
            f"ctx.setup({type(model).__name__}) has nothing to do for XGBoost, which makes its "
            f"boosters itself. Divide the rows with ctx.shard(items), and call xgboost.train with "
            f'{{"device": ctx.device}} on every rank.'
        )

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``: an array gives an array (a list too), a number a number.

        A mean of whole numbers is a float.
        """
        array = np.asarray(value)
        if array.dtype == np.bool_:
            array = array.astype(np.int64)
        if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
            raise StrategyError(
                f"ctx.all_reduce() under XGBoost takes numbers and arrays of them, and got "
                f"{type(value).__name__} of {array.dtype}"
            )
        if self.communicator.world_size == 1:
            return value
        require_connected("ctx.all_reduce()")
        # The result is flat before XGBoost 3.4.
        reduced = collective.allreduce(np.ascontiguousarray(array), _OPS[op]).reshape(array.shape)
        if op == "mean":
            reduced = reduced / self.communicator.world_size
        return reduced if array.ndim or isinstance(value, np.ndarray) else reduced.item()

    def no_sync(self, model: Any) -> NoReturn:
        """There are no gradients to accumulate.

        Raises:
            StrategyError: always.
        """
        raise StrategyError(
            f"ctx.no_sync({type(model).__name__}): a round of XGBoost is one pass over all rows "
            f"of all ranks, and accumulates nothing."
        )

    def diagnose(self, error: BaseException) -> BaseException:
        """See ``Strategy.diagnose``: XGBoost says that a collective broke, and not who is gone."""
        self._watch.stop()
        if self._group is None or not is_loss(error):
            return error
        found = self._explain(error, self.communicator.timeout)
        found.__cause__ = error
        return found

    def _explain(self, error: BaseException, timeout: float) -> BaseException:
        missing = missing_ranks(self.communicator, self._abandon)
        return explain(error, missing, self.communicator, timeout)

    def _abandon(self, rank_0_lives: bool) -> None:
        """Leave XGBoost's group after a failure; what cannot be closed is left to the end."""
        group = self._group
        if group is None:
            return
        group.abandon(finalize=rank_0_lives)
        self._left, self._teardown_is_safe = True, rank_0_lives

    @property
    def teardown_is_safe(self) -> bool:
        """See ``Strategy.teardown_is_safe``: XGBoost's own crashes while it is connected."""
        return self._teardown_is_safe

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``."""
        self._watch.stop()
        self._guard.remove()
        group = self._group
        if group is not None and not failed:
            group.close()
        elif group is not None:
            if not self._left:
                self._abandon(self.communicator.rank == 0 or store_answers(self.communicator.store))
            group.free_tracker()
        if self._link is not None:
            self._link.close(failed=failed)


class Threads:
    """What ``ctx.native`` is: how a thread beside ``main``'s trains, together or alone."""

    def __init__(self, link: RankLink, guard: ThreadGuard, address: str, timeout: float) -> None:
        self._link = link
        self._guard = guard
        self._address = address
        self._timeout = timeout
        self._opened: dict[str, int] = {}

    @contextlib.contextmanager
    def communicator(self, name: str) -> Iterator[None]:
        """Connect the calling thread with those of the other ranks that give the same name.

        Every rank has to open and close it, in the same order where one name is used again.

        Args:
            name: of what the threads do, the same on all ranks.

        Raises:
            RetryableError: a rank did not come, or went away.
            StrategyError: this thread is connected already.
        """
        if collective.is_distributed():
            raise StrategyError(
                f"ctx.native.communicator({name!r}) in a thread that is connected already: it "
                f"trains with the other ranks as it is."
            )
        number = self._opened[name] = self._opened.get(name, -1) + 1
        place = self._link.communicator
        store = self._link.second_connection(f"thread/{name}/{number}")
        own = Communicator(store, place.rank, place.world_size, timeout=self._timeout)
        try:
            group = Group.open(own, self._address, self._timeout)
        except XGBoostError as error:
            raise explain(error, missing_ranks(own, lambda _: None), own, self._timeout) from None
        failed = True
        try:
            yield
            failed = False
        finally:
            if failed:
                group.abandon(finalize=own.rank == 0 or store_answers(store))
                group.free_tracker()
            else:
                group.close()

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Let the calling thread train by itself while this is open.

        Raises:
            StrategyError: this thread is connected with the other ranks.
        """
        return self._guard.alone()
