"""An error of one rank in words, as other ranks and other processes hear of it."""

from dataclasses import dataclass

from trainkit import errors

__all__ = ["Failure"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of one rank, as the other ranks hear of it."""

    rank: int
    kind: str
    """Name of the class of trainkit's errors that it is; empty for any other error."""
    name: str
    """Name of its own class."""
    message: str
    errno: int | None = None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Failure":
        """Describe ``error``."""
        known = (base.__name__ for base in type(error).__mro__)
        kind = next((name for name in known if name in errors.__all__), "")
        number = getattr(error, "errno", None)
        message = str(error).removeprefix(f"[Errno {number}] ")
        return cls(rank, kind, type(error).__name__, message, number)

    @property
    def text(self) -> str:
        """The error in one line."""
        return f"{self.name}: {self.message}"

    @property
    def is_io(self) -> bool:
        """Whether it is an I/O error that may not come again, as on a full or busy disk."""
        return not self.kind and self.errno is not None

    def as_error(self, rank: int) -> BaseException:
        """The error that ``rank`` raises, be it this failure's rank or another one."""
        text = self.message if rank == self.rank else f"rank {self.rank} failed: {self.text}"
        if self.kind:
            return getattr(errors, self.kind)(text)  # type: ignore[no-any-return]
        if self.errno is not None:
            return OSError(self.errno, text)
        return RuntimeError(text if rank != self.rank else self.text)
