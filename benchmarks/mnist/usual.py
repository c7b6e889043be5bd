"""MNIST in the shape that examples usually have, on the digits that come with trainkit.

    python -m benchmarks.mnist.usual

Two convolutions of 32 and 64 channels, a linear layer of 9,216 × 128, dropout, Adadelta with a
learning rate of 1.0 that falls by 0.7 an epoch; images are PIL objects that torchvision turns
into tensors and normalises one by one. It tests after every epoch and stops at 97 %.
"""

import argparse
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

DIGITS = Path(__file__).parents[2] / "trainkit" / "data" / "mnist-10k"
GOAL = 0.97


class Digits(Dataset[tuple[Any, int]]):
    """Digits as images and labels; an item is built when it is asked for."""

    def __init__(self, split: str, transform: Callable[[Image.Image], Any]) -> None:
        images = gzip.decompress((DIGITS / f"{split}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((DIGITS / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        self.images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        self.labels = np.frombuffer(labels, np.uint8, offset=8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image), int(self.labels[index])


class Net(nn.Module):
    """1,199,882 parameters, nearly all of them in the first linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.hidden = nn.Linear(9216, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.scores = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, 1, 28, 28], normalised → scores [N, 10]."""
        x = functional.relu(self.conv1(images))
        x = functional.relu(self.conv2(x))
        x = self.dropout1(functional.max_pool2d(x, 2))
        x = self.dropout2(functional.relu(self.hidden(x.flatten(1))))
        return self.scores(x)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training batches of 64 in random order, and test batches of 1,000."""
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    train_loader = DataLoader(Digits("train", transform), batch_size=64, shuffle=True)
    return train_loader, DataLoader(Digits("t10k", transform), batch_size=1000)


def train_epoch(
    model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    """One pass over the training images, with a line every tenth batch."""
    model.train()
    for number, (images, labels) in enumerate(loader):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if number % 10 == 0:
            print(f"epoch {epoch} batch {number}/{len(loader)} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Any) -> float:
    """Share of the test images that ``model`` tells right; printed too."""
    model.eval()
    right = count = 0
    for images, labels in loader:
        right += int((model(images).argmax(1) == labels).sum())
        count += len(labels)
    print(f"test accuracy {right / count:.2%} on {count:,} images", flush=True)
    return right / count


def main() -> None:
    """Train until 97 % of the test images are told right, for 14 epochs at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train_loader, test_loader = loaders()
    model = Net()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(14):
        train_epoch(model, train_loader, optimizer, epoch)
        if evaluate(model, test_loader) >= GOAL:
            break
        schedule.step()


if __name__ == "__main__":
    main()
