"""How ranks train together: one folder a framework, resolved by name."""

from trainkit.strategies.base import Duty, Strategy
from trainkit.strategies.registry import resolve, strategies

__all__ = ["Duty", "Strategy", "resolve", "strategies"]
