"""torch's global random generators: the CPU's, and that of the current CUDA device."""

from typing import Any

import torch

__all__ = ["capture", "check", "give_back"]


def capture() -> dict[str, Any]:
    """States by name; a CUDA device counts only if this process uses it already."""
    states = {"torch": torch.get_rng_state()}
    cuda: Any = torch.cuda  # its functions have types in some releases only
    # Of the current device alone: asking the others would make a context of 400 MiB on each.
    if cuda.is_available() and cuda.is_initialized():
        states["torch_cuda"] = cuda.get_rng_state()
    return states


def check(states: dict[str, Any]) -> None:
    """Try the state of the CPU's generator; raises what torch raises for one that is none."""
    if "torch" in states:
        torch.Generator().set_state(states["torch"])


def give_back(states: dict[str, Any]) -> None:
    """Set the generators to saved states."""
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "torch_cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["torch_cuda"])
