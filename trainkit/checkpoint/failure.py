"""An error of one rank in words, as other ranks and other processes hear of it."""

import os
from dataclasses import dataclass

from trainkit import errors

__all__ = ["Failure"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of one rank, as the other ranks hear of it."""

    rank: int
    kind: str
    text: str
    errno: int | None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Failure":
        """Describe ``error``."""
        known = (base.__name__ for base in type(error).__mro__)
        kind = next((name for name in known if name in errors.__all__), "")
        return cls(rank, kind, f"{type(error).__name__}: {error}", getattr(error, "errno", None))

    @property
    def is_io(self) -> bool:
        """Whether it is an I/O error that may not come again, as on a full or busy disk."""
        return not self.kind and self.errno is not None

    def as_error(self, rank: int) -> BaseException:
        """The error that ``rank`` raises, be it this failure's rank or another one."""
        text = self.text if rank == self.rank else f"rank {self.rank} failed: {self.text}"
        if self.kind:
            return getattr(errors, self.kind)(text)  # type: ignore[no-any-return]
        if self.errno is not None:
            return OSError(self.errno, f"{os.strerror(self.errno)} ({text})")
        return RuntimeError(text)
