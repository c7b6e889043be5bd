"""What the torch recipes do alike: exact tests, the exported model, the last line."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import trainkit
from trainkit.recipes._lines import finish, say

__all__ = ["count_right", "export", "finish", "say", "total_steps"]


def total_steps(epochs: int, steps_an_epoch: int, max_steps: int | None) -> int:
    """Optimizer steps of the whole run, over all attempts."""
    by_epochs = epochs * steps_an_epoch
    return by_epochs if max_steps is None else min(by_epochs, max_steps)


@torch.no_grad()
def count_right(ctx: trainkit.Context, model: torch.nn.Module, loader: DataLoader[Any]) -> int:
    """How many samples ``model`` tells right; each counts once, on any number of ranks."""
    model.eval()
    right = torch.zeros((), device=ctx.device)
    shard = ctx.setup_dataloader(loader, train=False)
    for inputs, labels, *_ in shard:
        right += ((model(inputs).argmax(1) == labels) & shard.mask).sum()
    model.train()
    return round(float(ctx.all_reduce(right, "sum")))


def export(ctx: trainkit.Context, net: torch.nn.Module, folder: str | None) -> None:
    """Write the weights as ``folder/model.safetensors``, from rank 0; all ranks have to call."""
    if folder is None:
        return
    weights = {}
    for name, tensor in net.state_dict().items():
        # Under fsdp each rank holds a part, and all take part in putting it together.
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if ctx.rank == 0:
            weights[name] = whole.cpu().contiguous()
    if ctx.rank == 0:
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, Path(folder) / "model.safetensors")
