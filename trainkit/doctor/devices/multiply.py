"""A program: a real kernel on one GPU, whose result is known."""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["main"]

_N, _LARGE = 1024, 4096


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Multiply matrices on the GPU ``request["index"]``, exactly and then fast."""
    count = torch.cuda.device_count()
    if count <= request["index"]:
        if count and request["mig"]:
            return {"skipped": "CUDA shows a process the first MIG device only"}
        return {"error": f"torch sees {count} GPU(s)"}
    device = torch.device("cuda", request["index"])
    torch.cuda.set_device(device)
    twos = torch.full((_N, _N), 2.0, device=device)
    product = (twos @ twos).cpu()  # whole numbers, exact in any precision
    if not torch.equal(product, torch.full((_N, _N), 4.0 * _N)):
        return {"error": "a product of matrices is wrong"}
    matrix = torch.randn(_LARGE, _LARGE, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        matrix @ matrix
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(10):
        matrix @ matrix
    torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - begin) / 10
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "flops": 2 * _LARGE**3 / seconds,
    }
