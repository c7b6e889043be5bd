"""The states that are saved: torch modules of float32 parameters, ten to a layer."""

import torch

__all__ = ["STATES", "make_model", "num_bytes"]

STATES = {
    "64 × 4 MiB": (64, 1 << 20),
    "1000 × 256 KiB": (1000, 1 << 16),
    "4000 × 4 KiB": (4000, 1 << 10),
}
"""Number of parameters, and float32 elements of each."""

_IN_LAYER = 10


def make_model(state: str, *, seed: int = 0) -> torch.nn.Module:
    """A module with the parameters of ``state``, of random numbers."""
    count, elements = STATES[state]
    generator = torch.Generator().manual_seed(seed)
    layers = torch.nn.ModuleList()
    for first in range(0, count, _IN_LAYER):
        layer = torch.nn.Module()
        for number in range(min(_IN_LAYER, count - first)):
            values = torch.randn(elements, generator=generator)
            layer.register_parameter(f"p{number}", torch.nn.Parameter(values))
        layers.append(layer)
    model = torch.nn.Module()
    model.add_module("layers", layers)
    return model


def num_bytes(state: str) -> int:
    """Bytes of all parameters."""
    count, elements = STATES[state]
    return count * elements * 4
