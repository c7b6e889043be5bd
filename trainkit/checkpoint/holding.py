"""Taking a root for this run, on all ranks together."""

from dataclasses import dataclass

from trainkit.checkpoint.agreement import on_all_ranks
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import digest
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.generation import (
    Claim,
    await_claim,
    newest_generation,
    read_holder,
)
from trainkit.checkpoint.save.holder import Holder
from trainkit.checkpoint.save.lease import Lease, LeaseTimes, take_lease
from trainkit.coordination import Communicator
from trainkit.storage import Storage

__all__ = ["Hold", "hold_together"]


@dataclass(slots=True)
class Hold:
    """This run's hold on a root: a generation, and on rank 0 the lease."""

    generation: int
    lease: Lease | None
    name: str
    """The same on all ranks, and of no other hold: for keys in a store that others use, too."""

    def release(self) -> None:
        """Leave the root to other runs; any number of times."""
        if self.lease is not None:
            self.lease.release()


def hold_together(storage: Storage, communicator: Communicator, options: CheckpointOptions) -> Hold:
    """Take the lease of a root on rank 0, and check that every rank sees the claim.

    Every rank says whether it knows the last holder for dead, since rank 0 may be on another
    host than before.

    Raises:
        NoPermissionError: nothing can be written there.
        EnvironmentFaultError: another run has the root and is alive, or ranks do not see the same
            folder, or it is not one of checkpoints.
    """
    first, timeout = communicator.rank == 0, options.timeout
    leases: list[Lease] = []

    def look() -> tuple[int, Holder | None] | None:
        if not first:
            return None
        catalog.refuse_foreign(storage)
        newest = newest_generation(storage)
        return newest, read_holder(storage, newest)

    def take(dead: set[int]) -> Claim | None:
        if not first:
            return None
        leases.append(take_lease(storage, times, known_dead=dead))
        return leases[0].claim

    def see(claim: Claim) -> None:
        if not first:
            await_claim(storage, claim, rank=communicator.rank, timeout=options.visible_within)

    times = LeaseTimes(silence=options.lease, renewal=options.renewal, patience=options.patience)
    last = on_all_ranks(communicator, look, timeout=timeout).check()[0] or (0, None)
    fates = on_all_ranks(communicator, lambda: last[1] and last[1].fate(), timeout=timeout).check()
    dead = {last[0]} if "dead" in fates else set()
    try:
        # Rank 0 may wait for signs of life, and the others wait for rank 0.
        waiting = timeout + 2 * options.lease + options.patience
        taken = on_all_ranks(communicator, lambda: take(dead), timeout=waiting).check()[0]
        if taken is None:
            raise AssertionError("rank 0 claims or raises")  # a bug of ours, not a fault
        on_all_ranks(communicator, lambda: see(taken), timeout=timeout).check()
    except BaseException:
        for lease in leases:
            lease.release()
        raise
    name = f"{taken.generation}-{digest(taken.content)}"
    return Hold(taken.generation, leases[0] if leases else None, name)
