"""Programs that ranks of test_cuda.py run."""

import torch
import torch.distributed as dist

import trainkit


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
        self.inner_dtype = None

    def forward(self, x):
        y = self.layer(x)
        self.inner_dtype = y.dtype
        return y


class Block(torch.nn.Sequential):
    pass


def moves(**options):
    def main(ctx):
        net = torch.nn.Sequential(*(Block(torch.nn.Linear(1024, 1024)) for _ in range(16)))
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        ctx.setup(net)
        return {
            "whole": sum(p.numel() * p.element_size() for p in net.parameters()),
            "peak": torch.cuda.max_memory_allocated() - before,
        }

    return trainkit.run(main, seed=0, **options)


def trains(compile_model=False, clip=None, **options):
    def main(ctx):
        net = Net()
        if compile_model:
            net.compile()
        model = ctx.setup(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(256, 64, device=ctx.device)
        losses = []
        for _ in range(20):
            loss = (model(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                ctx.clip_grad_norm(model, clip)
            optimizer.step()
            losses.append(loss.item())
        weight = dict(net.named_parameters())["layer.weight"]
        return {
            "device": str(ctx.device),
            "backend": dist.get_backend_config() if dist.is_initialized() else None,
            "parameter": f"{type(weight).__name__} of {weight.dtype} on {weight.device}",
            "inner_dtype": str(net.inner_dtype),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }

    return trainkit.run(main, seed=0, **options)
