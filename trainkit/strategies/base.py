"""What every strategy offers, whatever its framework."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from trainkit.coordination import Communicator, StepAgreement, Store
from trainkit.errors import StrategyError
from trainkit.topology import Role, Topology

__all__ = ["Duty", "SharedState", "Strategy"]


class Duty(StrEnum):
    """What a process of a given role has to do under a strategy."""

    TRAIN = "train"
    SERVE = "serve"
    EVALUATE = "evaluate"
    IDLE = "idle"


class SharedState(Protocol):
    """A run whose parameters are kept by servers: what checkpoints have to do with them."""

    @property
    def saves(self) -> bool:
        """Whether this rank is the one that saves."""
        ...

    @property
    def outer(self) -> Any:
        """A further entry of the checkpoint: what the servers know besides parameters."""
        ...

    @property
    def in_step(self) -> bool:
        """Whether the model here is as the servers have it, so that it may be saved."""
        ...

    def carry(self, state: Mapping[str, Any]) -> None:
        """Hand entries of the checkpoint on to ranks that come in later."""
        ...

    def begin(self, restore: Callable[[], int | None] | None = None) -> int | None:
        """Restore what was saved, if it has to be, and take the job's parameters and position.

        Returns:
            The step of the job; None where it begins.
        """
        ...

    def stepped(self, step: int) -> None:
        """Hear that the loop has counted ``step``."""
        ...

    def synchronize(self) -> None:
        """Bring the model here and the servers together."""
        ...


class Strategy(ABC):
    """How the ranks of a job work together.

    The order is fixed: ``duty`` (before anything is connected), ``connect`` (on the main
    thread, before the user's ``main``), any of the others, ``close``.
    """

    framework: ClassVar[str]
    """``torch``, ``tensorflow``, ``xgboost`` or ``plain``."""
    name: ClassVar[str]
    """As users write it in ``strategy=``."""

    hears_notices: ClassVar[bool] = False
    """Whether ``serve`` listens for notices to stop itself; else one ends it at once."""
    setup_options: ClassVar[frozenset[str]] = frozenset()
    """Keyword arguments that ``setup`` takes besides the model; see ``Context.setup``."""

    communicator: Communicator
    """The control plane; there after ``connect``."""

    @classmethod
    def duty(cls, topology: Topology) -> Duty:
        """What the process that ``topology`` describes has to do.

        By default ranks train, an evaluator evaluates, and a ps has nothing to do.
        """
        if topology.role is Role.EVALUATOR:
            return Duty.EVALUATE
        if topology.role is Role.PS:
            return Duty.IDLE
        return Duty.TRAIN

    @abstractmethod
    def connect(self, topology: Topology, timeout: float) -> None:
        """Meet the other ranks.

        Args:
            topology: of this process, which must be a rank.
            timeout: seconds until everybody has to be there.

        Raises:
            DeadlineError: somebody did not come; the message names who.
            EnvironmentFaultError: it cannot work on this host.
        """

    def serve(self, topology: Topology, timeout: float) -> None:
        """Where ``duty`` is SERVE: serve the ranks that train, until the job is over.

        Called on the main thread, in place of ``connect`` and the user's ``main``.

        Args:
            topology: of this process.
            timeout: seconds until everybody has to be there.

        Raises:
            DeadlineError: somebody did not come; the message names who.
            RetryableError: the ranks that train are lost, and did not end in order.
        """
        raise AssertionError(f"strategy {self.name!r} has nobody serve: {topology.summary()}")

    @property
    @abstractmethod
    def device(self) -> Any:
        """The framework's device of this rank."""

    @property
    def data_shard(self) -> tuple[int, int]:
        """(index, count): which part of the data this rank reads."""
        return self.communicator.rank, self.communicator.world_size

    def watch_store(self) -> Store:
        """A store for a watching thread, while the training thread uses the communicator's."""
        return self.communicator.store

    def evaluation_shard(self) -> tuple[int, int]:
        """(index, count): which part of the data of an evaluation this rank reads.

        Called by all ranks together, at its beginning.
        """
        return self.data_shard

    def stop_agreement(self, timeout: float) -> StepAgreement | None:
        """What has all ranks stop after the same step; None where a rank stops by itself.

        Args:
            timeout: seconds to wait for the other ranks.
        """
        communicator = self.communicator
        if communicator.world_size == 1:
            return None
        return StepAgreement(
            self.watch_store(), communicator.rank, communicator.world_size, timeout=timeout
        )

    @property
    def shared(self) -> SharedState | None:
        """Where the state of the run is kept by others than the ranks; None where it is not."""
        return None

    @abstractmethod
    def setup(self, model: Any) -> Any:
        """Place ``model`` on the device and make it train together with the other ranks'."""

    @abstractmethod
    def all_reduce(self, value: Any, op: str) -> Any:
        """Combine ``value`` over all ranks; ``op`` is mean, sum, min or max."""

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """While open, backward passes of ``model`` only accumulate gradients locally."""
        del model
        yield

    def loader(self, dataset: Any, *, train: bool) -> Any:
        """This rank's part of ``dataset``, where the framework's own loader is none of torch's.

        Raises:
            StrategyError: this strategy has no loaders.
        """
        del dataset, train
        raise StrategyError(
            f"ctx.setup_dataloader() needs torch or TensorFlow; under strategy {self.name!r} use "
            f"ctx.shard(items)."
        )

    @property
    def training_over(self) -> bool:
        """In an evaluator: whether those that train have said that they are done."""
        return False

    def clip_grad_norm(self, model: Any, max_norm: float) -> Any:
        """Scale the gradients of ``model`` to an L2 norm of ``max_norm`` at most, on all ranks.

        Returns:
            The norm before, as a tensor of no dimension.

        Raises:
            StrategyError: there are no gradients here.
        """
        del model, max_norm
        raise StrategyError(
            f"ctx.clip_grad_norm() needs torch's gradients, and strategy {self.name!r} has none"
        )

    @property
    def native(self) -> Any:
        """The framework's own object, for what this interface does not cover."""
        return None

    def diagnose(self, error: BaseException) -> BaseException:
        """What to report in place of ``error``, which the user's code raised.

        For frameworks that say less of a lost peer than the ranks can find out together;
        ``error`` itself by default.
        """
        return error

    @property
    def teardown_is_safe(self) -> bool:
        """Whether the interpreter may take itself down after ``close(failed=True)``.

        Where a framework cannot leave its peers any more, its destructors would wait for them,
        or crash: then the process ends after its exit handlers, and at once.
        """
        return True

    def seed(self, seed: int) -> None:
        """Seed the framework's random generators of this rank."""
        del seed

    def finish(self) -> None:
        """Take note that ``main`` has returned and all is saved: the job is done, not stopped."""
        return

    @abstractmethod
    def close(self, *, failed: bool = False) -> None:
        """Leave the other ranks: in order, or at once after a failure."""
