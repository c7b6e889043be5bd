"""How ranks train together: one folder a framework, resolved by name."""

from trainkit.strategies.base import Duty, SharedState, Strategy
from trainkit.strategies.registry import resolve, strategies

__all__ = ["Duty", "SharedState", "Strategy", "resolve", "strategies"]
