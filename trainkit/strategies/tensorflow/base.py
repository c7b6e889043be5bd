"""What the strategies of TensorFlow have in common: devices, models, seeds."""

import gc
import logging
import signal
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import tensorflow as tf

from trainkit import config
from trainkit.errors import EnvironmentFaultError, StrategyError
from trainkit.resources.gpus import gpu_was_asked_for
from trainkit.strategies.base import Strategy
from trainkit.strategies.tensorflow.loader import Loader
from trainkit.strategies.tensorflow.losses import lost_peer
from trainkit.topology import Topology

__all__ = [
    "TensorFlowStrategy",
    "keep_lines_single",
    "limit_devices",
    "signals_kept",
    "skip_teardown",
]


class TensorFlowStrategy(Strategy):
    """A strategy on top of one of TensorFlow's, which is ``native``."""

    framework: ClassVar[str] = "tensorflow"

    _native: Any = None

    @property
    def native(self) -> Any:
        """TensorFlow's own strategy: models and optimizers are made in ``native.scope()``."""
        return self._native

    @property
    def device(self) -> str:
        """``GPU`` or ``CPU``: what a replica of this process computes on."""
        return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"

    def setup(self, model: Any) -> Any:
        """Check that ``model`` was made in ``native.scope()``, and return it as it is.

        Raises:
            StrategyError: it was not, or it has variables that this strategy cannot train.
        """
        if not isinstance(model, tf.__internal__.tracking.Trackable):
            raise StrategyError(
                f"ctx.setup() takes a model of Keras's or another object that TensorFlow tracks, "
                f"not {type(model).__name__}"
            )
        for variable in getattr(model, "variables", ()):
            plain = getattr(variable, "value", variable)  # Keras 3 wraps TensorFlow's
            plain = variable if callable(plain) else plain
            if not self._owns(plain):
                raise StrategyError(
                    f"{getattr(variable, 'path', variable.name)} was made outside of the "
                    f"strategy's scope, so that it would not train together with the others. Make "
                    f"model and optimizer under `with ctx.native.scope():`."
                )
        return model

    def _owns(self, variable: Any) -> bool:
        owner = getattr(variable, "distribute_strategy", None)
        # Outside of any scope TensorFlow's default strategy is the one in force.
        return (owner or tf.distribute.get_strategy()) is self._native

    @abstractmethod
    def loader(self, dataset: Any, *, train: bool) -> Loader:
        """This rank's part of ``dataset``, and the loop over it; see ``setup_dataloader``."""

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``: of one rank it is the value itself."""
        del op
        return value

    def seed(self, seed: int) -> None:
        """Seed TensorFlow and Keras alike on all ranks.

        Variables and the order of data depend on it, which have to be the same everywhere.
        """
        tf.keras.utils.set_random_seed((seed - self.communicator.rank) % 2**32)

    def diagnose(self, error: BaseException) -> BaseException:
        """See ``Strategy.diagnose``: errors of lost processes, from loops of the user's own."""
        return lost_peer(error, "training") or error

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``; there is nobody to leave."""
        del failed
        skip_teardown()


def limit_devices(topology: Topology) -> None:
    """Choose the GPUs of this process, before TensorFlow takes all of them.

    A process of a host with several gets the one of its local rank, any other all that it sees.

    Raises:
        EnvironmentFaultError: GPUs were asked for and TensorFlow sees too few of them.
    """
    request = config.settings().device
    gpus = tf.config.list_physical_devices("GPU")
    if request == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return
    local, size = topology.local_rank or 0, max(topology.local_world_size, 1)
    asked = "TRAINKIT_DEVICE=cuda" if request == "cuda" else gpu_was_asked_for(config.environ())
    if (asked or gpus) and len(gpus) < size:
        raise EnvironmentFaultError(
            f"TensorFlow sees {len(gpus)} GPUs, and {size} processes of this host want one each "
            f"({asked or 'some are visible'}). Is it the build for GPUs (`tensorflow`, not "
            f"`tensorflow-cpu`), does the driver fit, and does the pod ask for as many? "
            f"TRAINKIT_DEVICE=cpu does without."
        )
    if size > 1 and gpus:
        gpus = gpus[local : local + 1]
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)


def keep_lines_single() -> None:
    """Have lines of the log shown once, though absl gives the root logger a handler of its own.

    It calls ``logging.basicConfig`` at the first line that TensorFlow logs through it.
    """
    if logging.getLogger().handlers:
        return
    for name in ("trainkit", "tensorflow"):
        if logging.getLogger(name).handlers:
            logging.getLogger(name).propagate = False


@contextmanager
def signals_kept() -> Iterator[None]:
    """Give the notices to stop back to Python, from which TensorFlow takes SIGTERM meanwhile.

    Its service that coordinates workers listens for it, and would only tell itself.
    """
    here = threading.current_thread() is threading.main_thread()
    numbers = config.settings().preemption_signals if here else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def skip_teardown() -> None:
    """Spare this process, which is about to end, a second of collecting what TensorFlow made."""
    gc.freeze()
