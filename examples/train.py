"""A custom trainer: the same file runs under python, torchrun, mpirun and every operator."""

import torch
from mine import Net, data
from torch.utils.data import DataLoader

import trainkit


def main(ctx: trainkit.Context) -> None:
    model = ctx.setup(Net())  # device, wrapped for the strategy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = ctx.setup_dataloader(DataLoader(data, batch_size=64, shuffle=True))
    progress = trainkit.Progress()  # Stateful: epoch, step
    checkpoints = ctx.checkpoints(
        model=model, optimizer=optimizer, loader=loader, progress=progress
    )
    checkpoints.restore_latest()  # step restored, or None
    for progress.epoch in range(progress.epoch, 10):  # noqa: B020 - goes on where it was
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.step += 1
            checkpoints.step(progress.step)  # policy decides; pre-emption forces a save


if __name__ == "__main__":
    trainkit.run(main)
