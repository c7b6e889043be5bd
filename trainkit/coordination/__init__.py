"""Ranks agreeing without tensors: stores, barriers, and stopping at one step."""

from trainkit.coordination.agreement import StepAgreement
from trainkit.coordination.communicator import Communicator
from trainkit.coordination.store import MemoryStore, PrefixedStore, Store

__all__ = ["Communicator", "MemoryStore", "PrefixedStore", "StepAgreement", "Store"]
