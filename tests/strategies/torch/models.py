"""A small model with blocks, its data, and training under a strategy; for tests with real ranks."""

import torch
from torch.nn import functional

import trainkit

WIDTH, ROWS = 12, 12


class Block(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, 21)  # 21 rows do not divide by 2, nor 5 by 2 or 3
        self.down = torch.nn.Linear(21, WIDTH)
        self.dropout = torch.nn.Dropout(dropout)
        self.calls = 0
        self.seen = None

    def forward(self, x):
        self.calls += 1
        hidden = self.up(self.norm(x))
        self.seen = hidden.dtype
        return x + self.down(self.dropout(functional.gelu(hidden)))


class Net(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = torch.nn.Linear(5, WIDTH)
        self.blocks = torch.nn.ModuleList(Block(dropout) for _ in range(3))
        self.last = torch.nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def batch(step, micro, dtype):
    """The global batch of a step: rows of which each rank takes its part."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    x = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
    y = torch.stack([x.sum(1), x.square().mean(1)], 1)
    return x.to(dtype), y.to(dtype)


def whole(tensor):
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().double().tolist()


def weights(net):
    return {name: whole(value) for name, value in net.state_dict().items()}


def train(
    ctx,
    net,
    *,
    steps=10,
    optimizer="sgd",
    clip=None,
    accumulate=1,
    dtype=torch.float32,
    setup=None,
    no_sync=True,
):
    """Train; returns global losses and norms by step, and whole weights at the end."""
    model = ctx.setup(net.to(dtype), **(setup or {}))
    opt = OPTIMIZERS[optimizer](model.parameters())
    losses, norms = [], []
    for step in range(steps):
        opt.zero_grad()
        total = 0.0
        for micro in range(accumulate):
            x, y = batch(step, micro, dtype)
            x, y = x[ctx.rank :: ctx.world_size], y[ctx.rank :: ctx.world_size]
            x, y = x.to(ctx.device), y.to(ctx.device)
            last = micro == accumulate - 1
            with ctx.no_sync(model, when=no_sync and not last):
                loss = functional.mse_loss(model(x), y) / accumulate
                loss.backward()
            total += float(ctx.all_reduce(loss.detach()))
        if clip is not None:
            norms.append(float(ctx.clip_grad_norm(model, clip)))
        opt.step()
        losses.append(total)
    return {"losses": losses, "norms": norms, "weights": weights(net)}


def run(main, strategy, *, seed=7):
    """``main(ctx)`` as a user's script would have it, with its exit code and all."""
    return trainkit.run(main, strategy=strategy, seed=seed)
