"""How a rank lives and ends: notices to stop, failures, exit codes."""

from trainkit.lifecycle.failure import FailureRecord, report
from trainkit.lifecycle.monitor import RankMonitor

__all__ = ["FailureRecord", "RankMonitor", "report"]
