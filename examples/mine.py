"""A model and data of one's own, for train.py: which of ten directions is a noisy point in?"""

import torch
from torch.utils.data import TensorDataset

_generator = torch.Generator().manual_seed(0)
_directions = torch.randn(10, 16, generator=_generator)
_labels = torch.randint(10, (4096,), generator=_generator)
_points = _directions[_labels] + 0.5 * torch.randn(4096, 16, generator=_generator)

data = TensorDataset(_points, _labels)
"""4,096 points of 16 numbers, and the direction (0 … 9) that each belongs to."""


class Net(torch.nn.Module):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Points [N, 16] → scores [N, 10]."""
        scores: torch.Tensor = self.layers(points)
        return scores
