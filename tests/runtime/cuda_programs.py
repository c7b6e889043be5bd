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


def trains(compile_model=False, **options):
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
            optimizer.step()
            losses.append(loss.item())
        return {
            "device": str(ctx.device),
            "backend": dist.get_backend_config() if dist.is_initialized() else None,
            "inner_dtype": str(net.inner_dtype),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }

    return trainkit.run(main, seed=0, **options)
