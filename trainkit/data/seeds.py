"""Seeds that are derived from one seed, so that nothing random depends on who asks first."""

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*path: int | str) -> int:
    """A seed of its own for each path, such as ``derive_seed(7, "order", epoch)``.

    Sums such as ``seed + epoch`` would give (seed 0, epoch 1) and (seed 1, epoch 0) the same
    numbers; a hash does not.

    Returns:
        A number from 0 to 2**63 - 1, the same on every machine and Python.
    """
    digest = hashlib.sha256("/".join(str(part) for part in path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
