"""Saves under way: handed to a writer on every rank, and settled by all of them together."""

import contextlib
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import trainkit
from trainkit.checkpoint.collecting import not_collecting
from trainkit.checkpoint.copier import Copier
from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.capture import Capture
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.pace import Pace, Plan
from trainkit.checkpoint.save.retention import Retention, discard_step
from trainkit.checkpoint.save.settling import Flight, Settling
from trainkit.checkpoint.save.tiers import LocalTier
from trainkit.checkpoint.save.verdicts import Verdicts
from trainkit.checkpoint.save.writers import Background, Foreground, Writer
from trainkit.checkpoint.sweeping import Sweeper
from trainkit.coordination import Communicator, Store
from trainkit.errors import RetryableError, TrainkitError
from trainkit.storage import Storage
from trainkit.waiting import Deadline

__all__ = ["Saver"]

_WHOLE = 8
"""One of so many saves sends all of its bytes."""

log = logging.getLogger(__name__)


class Saver:
    """Saves a state under one generation of a root.

    ``begin`` and ``settle`` are called by every rank, in the same order. A save is settled
    when rank 0 knows that it was committed, or why it was not, and has told the others through
    the store of the communicator; a failure on one rank is one on all.
    """

    def __init__(
        self,
        storage: Storage,
        state: Mapping[str, Any],
        communicator: Communicator,
        options: CheckpointOptions,
        generation: int,
        store: Store,
        retention: Retention,
        tier: LocalTier | None = None,
    ) -> None:
        """Start a process that writes, where there is to be one.

        Args:
            storage: of the root.
            state: what to save.
            communicator: of the ranks that save together.
            options: time limits, and whether to write beside training.
            generation: claimed from the root.
            store: for messages among these ranks about saves to this root.
            retention: removes old checkpoints after a commit.
            tier: where saves go before the root, if anywhere.
        """
        self._storage = storage
        self._capture = Capture(state, communicator.rank, communicator.world_size)
        self._communicator = communicator
        self._options = options
        self._generation = generation
        self._attempts = 0
        self._owner = os.getpid()
        self._flight: Flight | None = None
        self.committed: StepFolder | None = None
        """The last save that was settled and had been committed to the root."""
        self.kept: StepFolder | None = None
        """The last save that was settled and is in the local tier, as far as this rank's goes."""
        self._tier = tier
        self._leave: StepFolder | None = None
        """In the tier, whole; it stays there until the next one is."""
        self._upload_next = False
        self.pace = Pace()
        """How long saves have taken."""
        self.background = options.background and storage.reopenable
        """Whether saves are written beside training."""
        self._writer: Writer = (
            Background(storage, tier) if self.background else Foreground(storage, tier)
        )
        self._settle_by = partial(
            Settling,
            verdicts=Verdicts(store, communicator.rank, communicator.world_size),
            rank=communicator.rank,
            world_size=communicator.world_size,
            discard=partial(discard_step, storage),
        )
        self._usual = self._settling = self._settle_by(self._writer)
        self._warmed = False
        self._sweeper = Sweeper(retention, background=self.background)

    @property
    def in_flight(self) -> int | None:
        """The step of the save that is not settled; None if there is none."""
        return None if self._flight is None else self._flight.folder.step

    def plan_stop(self, left: float | None) -> Plan:
        """What to do with the state before a kill: the same on all ranks, which all call it.

        By what rank 0 has measured, and the time of the rank that has least.

        Args:
            left: seconds until the kill, as far as this rank knows; None: no limit.
        """
        timeout = self._options.timeout
        told = self._communicator.all_gather_object((left, self.pace), timeout=timeout)
        known = [seconds for seconds, _ in told if seconds is not None]
        pace: Pace = told[0][1]
        return pace.plan(min(known)) if known else Plan.UPLOAD

    @property
    def uploading(self) -> bool:
        """Whether the save that is not settled goes to the root."""
        return self._flight is not None and self._flight.upload

    def name_next(self, step: int) -> StepFolder:
        """The folder of the next attempt to save, whoever makes it."""
        folder = StepFolder(step, self._generation, self._attempts)
        self._attempts += 1
        return folder

    def forget(self) -> None:
        """The state is another one now than what was saved last."""
        self.committed = self.kept = None

    def begin(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        upload: bool | None = None,
        urgent: bool = False,
    ) -> None:
        """Take the state as it is now, and have it written.

        Args:
            step: optimizer steps done.
            metrics: to be saved with it.
            upload: whether it goes to the root; else it stays in the local tier. By turns if
                None: the same on all ranks.
            urgent: whether the end of the save is waited for next, and not this method's.

        Raises:
            BaseException: what ``settle`` of the save before raises; nothing has begun then.
                Or what is wrong with the state on this rank; ``settle`` raises it again, on
                all ranks.
        """
        self.drop_copy()
        self.settle()
        if upload is None:
            turn = self._attempts % self._options.upload_every == 0
            upload = self._tier is None or self._upload_next or turn
        folder = self.name_next(step)
        unseen = not upload and self._tier is not None and not self._tier.shared
        flight = Flight(folder, Deadline(self._options.timeout), upload, unseen)
        self._flight, self._settling = flight, self._usual
        self._warmed = True
        rank = self._communicator.rank
        try:
            with not_collecting():
                entries, images, flight.division = self._capture.take()
            job = Job(
                folder=folder,
                rank=rank,
                world_size=self._communicator.world_size,
                division=flight.division,
                entries=entries if rank == 0 else {},
                metrics=metrics,
                written_by=f"trainkit {trainkit.__version__}",
                timeout=self._options.timeout,
                attempts=self._options.attempts,
                pause=self._options.pause,
                upload=upload,
                like=self._alike(folder),
                leave=None if self._leave is None else self._leave.name,
            )
            with not_collecting() if self.background else contextlib.nullcontext():
                check = partial(self._settling.check_others, flight)
                self._writer.submit(job, images, check, urgent=urgent)
        except (Exception, TrainkitError) as error:
            flight.error = error
            self._settling.own_end(flight, Failure.of(rank, error))
            raise
        except BaseException:  # Ctrl-C; who goes on must not take it for saved
            flight.error = RetryableError(f"saving step {step} was interrupted")
            self._settling.own_end(flight, Failure.of(rank, flight.error))
            raise
        finally:
            flight.stalled = flight.deadline.elapsed

    def _alike(self, folder: StepFolder) -> str | None:
        """The step folder whose unchanged parts need not be sent again, if any."""
        committed = self.committed
        if committed is None or not self._options.copy_unchanged:
            return None
        # What is damaged in the store is copied with the damage; so not for ever.
        return None if folder.attempt % _WHOLE == 0 else committed.name

    def begin_copy(self, source: StepFolder) -> None:
        """Bring a step that is committed in the tier, which all ranks see, to the root.

        Raises:
            BaseException: what ``settle`` of the save before raises; nothing has begun then.
        """
        self.settle()
        if self._tier is None:
            raise AssertionError("there is no tier to copy from")  # a bug of ours, not a fault
        options, folder = self._options, self.name_next(source.step)
        job = Job(
            folder=folder,
            rank=self._communicator.rank,
            world_size=self._communicator.world_size,
            division="",
            entries={},
            metrics={},
            written_by="",
            timeout=options.timeout,
            attempts=options.attempts,
            pause=options.pause,
        )
        copier = Copier(self._tier.storage(), source, self._storage, job)
        self._flight = Flight(folder, Deadline(options.timeout), upload=True, unseen=False)
        self._settling = self._settle_by(copier)

    def drop_copy(self) -> None:
        """End a copy that is under way, since something newer is to be saved; on all ranks."""
        if self._settling is not self._usual:
            self._settling.work.cancel()
            self.settle()

    def look(self) -> bool:
        """Whether this rank's own work on the save has ended; never waits.

        Raises:
            BaseException: in a job of one rank, why the save failed; it is settled by that.
        """
        flight = self._flight
        if flight is None:
            self._warm()
            return True
        if not flight.ended:
            failure = self._settling.look(flight)
            if failure is not None and self._communicator.world_size > 1:
                log.warning(
                    "saving step %d failed: %s. All ranks hear of it at the next save.",
                    flight.folder.step,
                    failure.text,
                )
        if flight.ended and self._nobody_waits(flight):
            self.settle()
        return flight.ended

    def settle(self) -> None:
        """Wait until the save under way is committed, as far as rank 0 can tell.

        Raises:
            UsageError: something in the state cannot be saved, or ranks save different things.
            OSError: the storage failed at each attempt; older checkpoints are untouched.
            DeadlineError: some ranks did not come; the message names them.
            EnvironmentFaultError: another run saves to the same root.
        """
        flight = self._flight
        if flight is None:
            return
        lead, settling = self._communicator.rank == 0, self._settling
        try:
            outcome = settling.end(flight)
        finally:
            self._flight, self._settling = None, self._usual
            if settling is not self._usual:
                settling.work.close()
        if settling is not self._usual:
            self._settle_copy(flight, outcome)
            return
        self._upload_next = False
        if outcome is not None and not flight.upload:
            self._go_without(flight, outcome)
            return
        if flight.error is not None:
            raise flight.error
        if outcome is not None:
            raise (flight.failure or outcome).as_error(self._communicator.rank)
        if flight.failure is not None:
            # Rank 0 had read this rank's part by then, so the others count the save as done.
            log.warning(
                "rank %d: %s. Step %d is committed all the same.",
                flight.failure.rank,
                flight.failure.text,
                flight.folder.step,
            )
        kept, took = self._writer.kept, self._writer.seconds
        if kept is not None or not flight.upload:
            self.kept = self._leave = flight.folder
        if flight.upload:
            self.committed = flight.folder
        if flight.ended:
            # Copying is part of it, and of what a foreground writer measures.
            copying = flight.stalled if self.background else 0.0
            self.pace.note(
                kept=None if kept is None else copying + kept,
                uploaded=copying + took if flight.upload else None,
            )
        if lead:
            self._tell_people(flight)
            if flight.upload:
                self._sweeper.sweep()

    def _settle_copy(self, flight: Flight, outcome: Failure | None) -> None:
        """All ranks: a copy that came to nothing leaves all as it was."""
        if outcome is None:
            self.committed = flight.folder
        if self._communicator.rank != 0:
            return
        if outcome is None:
            self._tell_people(flight)
            self._sweeper.sweep()
        else:
            log.warning(
                "step %d is still in the local tier alone: %s", flight.folder.step, outcome.text
            )

    def _go_without(self, flight: Flight, outcome: Failure) -> None:
        """All ranks: the local tier failed on one of them, so the next save goes to the root."""
        self._upload_next = True
        if flight.error is not None and not isinstance(flight.error, OSError):
            raise flight.error  # the state itself cannot be saved
        if not outcome.is_io:
            raise outcome.as_error(self._communicator.rank)
        log.warning(
            "step %d is not in the local tier, since rank %d failed: %s. The next save goes to %s.",
            flight.folder.step,
            outcome.rank,
            outcome.text,
            self._storage.url,
        )

    def tidy(self) -> None:
        """Wait until old checkpoints are removed, if that is under way."""
        self._sweeper.wait()

    def finish(self, seconds: float) -> None:
        """Wait for this rank's own work, and give everything back; asks no other rank.

        Args:
            seconds: to wait at most.
        """
        if os.getpid() != self._owner:  # a forked child has copies of all this, and no part in it
            return
        flight = self._flight
        try:
            if flight is not None and not flight.ended:
                work = self._settling.work
                ended, failure = work.poll(0.0)
                if not ended:
                    # A warning: a script without any set-up of logging shows nothing less.
                    log.warning(
                        "waiting until step %d is saved, for %.0f s at most",
                        flight.folder.step,
                        seconds,
                    )
                limit = Deadline(seconds)
                while not ended and not limit.passed:
                    ended, failure = work.poll(limit.left)
                if not ended or failure is not None:
                    reason = failure.text if failure else f"not done within {seconds:.0f} s"
                    log.error("step %d was not saved: %s", flight.folder.step, reason)
        finally:
            self._flight = None
            self._warmed = True
            self._settling.work.close()
            self._writer.close()
            self.tidy()

    def _warm(self) -> None:
        """Prepare the first save, once training has begun: optimizers have a state by then."""
        if self._warmed or not self.background:
            return
        self._warmed = True
        try:
            _, images, _ = self._capture.take(sketch=True)
        except (Exception, TrainkitError) as error:  # the first save will say so to people
            log.debug("the size of a save is not known yet: %s", error)
            images = []
        self._writer.warm(sum(image.size for image in images))

    def _nobody_waits(self, flight: Flight) -> bool:
        """Whether this rank may settle alone; an error is raised on all ranks at one moment."""
        lead = self._communicator.rank == 0 and not flight.unseen
        return self._communicator.world_size == 1 or (lead and flight.failure is None)

    def _tell_people(self, flight: Flight) -> None:
        tier = self._tier
        log.info(
            "saved step %d to %s in %.2f s; training stood still for %.2f s",
            flight.folder.step,
            self._storage.url if flight.upload or tier is None else tier.folder,
            flight.deadline.elapsed,
            flight.stalled,
        )
