"""Does this MPI send device memory? Run in a process of its own: it may die of the attempt.

python -m trainkit.strategies.torch.mpi.probe cuda:0
"""

import sys

import torch

__all__ = ["main"]


def main(device: str) -> int:
    """Send four bytes of ``device`` to this very process; say ``works`` if they arrive."""
    from mpi4py import MPI

    sent = torch.tensor([20261129], dtype=torch.int32, device=device)
    received = torch.zeros_like(sent)
    torch.cuda.synchronize(device)
    own = MPI.COMM_SELF
    buffers = [MPI.buffer.fromaddress(t.data_ptr(), t.nbytes) for t in (sent, received)]
    own.Sendrecv([buffers[0], 4, MPI.BYTE], 0, 0, [buffers[1], 4, MPI.BYTE], 0, 0)
    own.Allreduce(MPI.IN_PLACE, [buffers[0], 1, MPI.INT32_T], MPI.SUM)
    if received.item() != 20261129 or sent.item() != 20261129:
        return 1
    print("works", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
