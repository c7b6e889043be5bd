"""torch.distributed.checkpoint (DCP) on trainkit's storage and format."""

from trainkit.checkpoint.interop.dcp.reader import TrainkitReader
from trainkit.checkpoint.interop.dcp.writer import TrainkitWriter

__all__ = ["TrainkitReader", "TrainkitWriter"]
