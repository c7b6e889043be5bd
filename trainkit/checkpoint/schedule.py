"""At which steps the save policy is asked, so that all ranks save after the same one."""

import time
from collections.abc import Callable

from trainkit.checkpoint.policy import SavePolicy, next_look
from trainkit.coordination import Communicator

__all__ = ["Schedule"]


class Schedule:
    """Carries the answers of a policy to all ranks.

    All ranks ask at the same steps. A policy that knows the step alone answers alike
    everywhere. Any other is asked on rank 0 only, and rank 0 tells the others the answer
    together with the step of the next question; between the two, nobody talks.
    """

    def __init__(
        self,
        policy: SavePolicy,
        communicator: Communicator,
        *,
        timeout: float,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Begin; every rank does, with a policy of the same kind.

        Args:
            policy: what decides.
            communicator: of the ranks that save together.
            timeout: seconds to wait for the other ranks' answer.
            clock: seconds; the monotonic clock by default.
        """
        self._policy = policy
        self._communicator = communicator
        self._timeout = timeout
        self._clock = clock or time.monotonic
        self._stood_still = 0.0
        self._last: tuple[int, float] | None = None
        self.next_look = 0
        """No step before this one needs a call of ``due``."""

    def due(self, step: int) -> bool:
        """Whether to save after ``step``; called by all ranks at the same steps.

        Raises:
            DeadlineError: other ranks did not come to this step; the message names them.
        """
        if self._policy.deterministic:
            answer, self.next_look = self._ask(step)
            return answer
        own = self._ask(step) if self._communicator.rank == 0 else None
        answer, self.next_look = self._communicator.broadcast_object(own, timeout=self._timeout)
        return bool(answer)

    def stand_still(self, seconds: float) -> None:
        """Take ``seconds`` that a save took off the policy's clock."""
        self._stood_still += seconds

    def restart(self) -> None:
        """Forget the pace, and ask at the next step: the steps begin anew after a restore."""
        self.next_look = 0
        self._last = None

    def _ask(self, step: int) -> tuple[bool, int]:
        now = self._clock() - self._stood_still
        answer = self._policy.should_save(step, now)
        pace, most = 0.0, 1
        if self._last is not None and step > self._last[0]:
            pace = (now - self._last[1]) / (step - self._last[0])
            # At most twice as far as the pace is known for: a host that runs ahead of its
            # device makes the first steps look a thousand times faster than they are.
            most = 2 * (step - self._last[0])
        self._last = (step, now)
        look = next_look(self._policy, step, now, pace)
        return answer, look if self._policy.deterministic else min(look, step + most)
