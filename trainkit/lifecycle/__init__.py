"""How a rank lives and ends: notices to stop, failures, exit codes."""

from trainkit.lifecycle.failure import FailureRecord, report
from trainkit.lifecycle.monitor import RankMonitor
from trainkit.lifecycle.parent import die_with_parent

__all__ = ["FailureRecord", "RankMonitor", "die_with_parent", "report"]
