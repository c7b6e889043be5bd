"""What a server holds of the job: its part of the parameters, and what goes along with them."""

from collections.abc import Mapping
from typing import Any

from trainkit.strategies.torch.local_sgd.connection import Connection
from trainkit.strategies.torch.local_sgd.frames import Frame, Kind, ProtocolError, new_buffer
from trainkit.strategies.torch.local_sgd.shard import (
    WIRES,
    Shard,
    as_bytes,
    as_tensor,
    options_from,
)

__all__ = ["SET_BACK", "Holding"]

_MOST = 1 << 42
"""Bytes of a payload; more than any host has memory for is a mistake."""
_MOST_SMALL = 1 << 30
"""Bytes that one worker may give to a gathering."""

SET_BACK = (
    "the job was set back to its last checkpoint, since the chief and a server were lost together; "
    "this worker has newer parameters. Started again, it comes in where the job is"
)


class Holding:
    """Empty until the chief brings something, and after that as the last round left it."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.shard: Shard | None = None
        self.position: dict[str, Any] = {"round": -1}
        """Where in the data a round begins, as the workers tell it."""
        self._seed: dict[str, Any] = {}

    def take(self, frame: Frame) -> None:
        """Hold what the chief brings.

        Raises:
            ProtocolError: sizes that do not fit together.
        """
        meta, payload = frame.meta, frame.payload
        size, num_outer = int(meta["size"]), int(meta["num_outer"])
        options = options_from(meta["outer"])
        moving = len(payload) - 4 * size
        if moving not in (0, 4 * num_outer) or not 0 <= num_outer <= size:
            raise ProtocolError(f"parameters of {len(payload)} bytes for {size} numbers")
        momentum = as_tensor(payload[4 * size :]) if moving else None
        self.shard = Shard(as_tensor(payload[: 4 * size]), num_outer, options, momentum)
        self._seed = {key: meta[key] for key in ("seed", "fingerprint", "outer", "sync_every")}
        self.position = meta["position"] or {"round": frame.round}

    def take_position(self, frame: Frame) -> None:
        """Hold where in the data a round begins, if it is none that is over."""
        if frame.round >= self.position["round"]:
            self.position = {**frame.meta, "round": frame.round}

    @property
    def greeting(self) -> dict[str, Any]:
        """What a worker is told when it comes; nothing but None where nothing is held."""
        return {key: self._seed.get(key) for key in ("seed", "fingerprint")}

    def room(self, connection: Connection, kind: Kind, number: int, size: int) -> memoryview:
        """Memory for a payload of ``size`` bytes that is about to come.

        Raises:
            ProtocolError: there should be none of this size.
        """
        if kind is Kind.PUSH and self.shard is not None:
            expected = self.shard.size * WIRES[self.shard.options.wire].itemsize
            if size != expected:
                raise ProtocolError(f"a push of {size} bytes, expected {expected}")
            return new_buffer(size)
        most = {Kind.SEED: _MOST, Kind.GATHER: _MOST_SMALL}.get(kind, 0)
        if connection.rank is None or size > most:
            raise ProtocolError(f"{kind.name} with a payload of {size} bytes")
        return new_buffer(size)

    def misfit(self, rank: int | None, joining: Mapping[str, Any]) -> tuple[str, bool] | None:
        """Why a worker cannot join, and whether that is final; None where it is of this start of
        the job and has the chief's model."""
        if joining["seed"] not in (None, self._seed["seed"]):
            return SET_BACK, False
        if joining["fingerprint"] == self._seed["fingerprint"]:
            return None
        return (
            f"worker {rank} has another model than the chief (names, shapes or their "
            f"order differ): all workers have to set up the same model",
            True,
        )

    def state(self, *, keeper: bool) -> tuple[dict[str, Any], tuple[memoryview, ...]]:
        """All that a worker needs to come in, but for who else is there.

        The payloads are copies: they may be under way while a round ends.
        """
        shard = self._held()
        payloads = [as_bytes(shard.parameters.clone())]
        if keeper:
            payloads.append(as_bytes(shard.momentum.clone()))
        told = {key: self._seed[key] for key in ("seed", "outer", "sync_every")}
        return {"position": self.position, **told}, tuple(payloads)

    def _held(self) -> Shard:
        if self.shard is None:
            raise AssertionError("nothing is held")  # a bug of ours
        return self.shard
